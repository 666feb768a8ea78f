"""Print which third-party software the image contains, and where the licence text of each part is.

The image's build runs this in the finished image, and fails if a text is missing. In the stage that builds,
`third_party.py linked PACKAGE TARGET` collects the texts of all that Debian linked into a package of Go programs.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from tempfile import TemporaryDirectory

DOC = Path("/usr/share/doc")
LINKED = DOC / "testcni/linked"
OWN = "testcni"
LICENCE_FILE = re.compile(r"(?i)(licen[cs]e|copying|notice)")
HEAD = """# Third-party software in this image

The image's build writes this list. testcni itself is licensed under Apache-2.0, and its eBPF programs under
GPL-2.0-only OR BSD-2-Clause: see LICENSE and LICENSES beside this file.

- The plugin `/opt/testcni/bin/testcni` is linked statically with the GNU C library (LGPL-2.1-or-later, text:
  /usr/share/doc/libc6/copyright) and GCC's runtime library (GPL-3.0-or-later with the Runtime Library Exception,
  text: /usr/share/doc/libgcc-s1/copyright). testcni's sources suffice to link it with another version of them.
- The eBPF programs contain inline functions of libbpf's headers (LGPL-2.1-only OR BSD-2-Clause, text:
  /usr/share/doc/libbpf1/copyright).
- The reference plugins portmap, bandwidth and loopback are those of Debian.
"""


@dataclass(frozen=True)
class Part:
    """A piece of third-party software and its licence texts."""

    name: str
    version: str
    texts: tuple[Path, ...]
    licence: str = "see the text"


def debian_packages() -> Iterator[Part]:
    """Yield the packages that dpkg knows."""
    for line in _run("dpkg-query", "--show", "--showformat", "${Package} ${Version}\n").splitlines():
        name, version = line.split()
        yield Part(name, version, _existing(DOC / name / "copyright"))


def python_packages() -> Iterator[Part]:
    """Yield the packages beside the agent's own."""
    for package in distributions(path=[path for path in sys.path if path.endswith("site-packages")]):
        if package.name != OWN:
            yield Part(package.name, package.version, tuple(_licence_files(package)), _licence(package))


def linked_parts() -> Iterator[Part]:
    """Yield the reference plugins and all that Debian linked into them."""
    for folder in LINKED.iterdir():
        name, _, version = folder.name.partition("_")
        yield Part(name, version, _existing(folder / "copyright"))


def collect_linked(package: str, target: Path) -> None:
    """Write the copyright files of a Debian package and of all sources that it was built with below `target`."""
    shown = _run("dpkg-query", "--show", "--showformat", "${Version}\t${Built-Using}", package)
    version, using = shown.split("\t")
    _copy(DOC / package / "copyright", target / f"{package}_{version}")
    smallest = _smallest_packages()
    for source, source_version in re.findall(r"(\S+) \(= (\S+)\)", using):
        _download(smallest[source], target / f"{source}_{source_version}")


def _smallest_packages() -> dict[str, str]:
    """Return for each source the smallest package that is built from it: any of them has the copyright file."""
    found: dict[str, tuple[int, str]] = {}
    for paragraph in _run("apt-cache", "dumpavail").split("\n\n"):
        fields: dict[str, str] = dict(re.findall(r"^(Package|Source|Size): (\S+)", paragraph, re.MULTILINE))
        if "Size" in fields:
            candidate = (int(fields["Size"]), fields["Package"])
            source = fields.get("Source", fields["Package"])
            found[source] = min(found.get(source, candidate), candidate)
    return {source: package for source, (_size, package) in found.items()}


def _download(package: str, target: Path) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        _run("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package, cwd=folder)
        _run("dpkg-deb", "--extract", str(next(folder.glob("*.deb"))), "unpacked", cwd=folder)
        _copy(folder / f"unpacked/usr/share/doc/{package}/copyright", target)


def _copy(text: Path, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "copyright").write_bytes(text.read_bytes())


def _licence(package: Distribution) -> str:
    """Return the licence that a package names in its metadata."""
    for field in ("License-Expression", "License"):
        if field in package.metadata:
            return package.metadata[field].partition("\n")[0]
    return Part.licence


def _licence_files(package: Distribution) -> Iterator[Path]:
    for file in package.files or ():
        if ".dist-info" in file.parts[0] and LICENCE_FILE.match(file.name):
            yield Path(str(file.locate()))


def _existing(text: Path) -> tuple[Path, ...]:
    return (text,) if text.is_file() else ()


def _table(parts: list[Part]) -> Iterator[str]:
    yield "| name | version | licence | text |"
    yield "|---|---|---|---|"
    for part in sorted(parts, key=lambda part: part.name.lower()):
        yield f"| {part.name} | {part.version} | {part.licence} | {' '.join(map(str, sorted(part.texts)))} |"


def _run(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


def print_list() -> int:
    """Print the list; return 1 if a part has no licence text."""
    sections = {
        "Debian packages": list(debian_packages()),
        "Python packages": list(python_packages()),
        "Reference plugins": list(linked_parts()),
    }
    print(HEAD, end="")
    for title, parts in sections.items():
        print("", f"## {title}", "", *_table(parts), sep="\n")
    missing = [part.name for parts in sections.values() for part in parts if not part.texts]
    if missing:
        print("no licence text in the image:", *missing, file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["linked"]:
        collect_linked(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(print_list())
