"""What documentation pages say is true where a program can tell: links lead somewhere, confs are accepted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.model.network import Network
from tests import reference
from tests.lab.space import REPO
from tests.networks import MODES, parse_conf

PAGES = sorted([*REPO.glob("*.md"), *REPO.glob("docs/**/*.md")])
SOURCES = sorted(
    path
    for folder in ("agent", "bird", "cni-bin", "ebpf", "manifests", "tests")
    for path in (REPO / folder).rglob("*")
    if path.suffix in (".py", ".c", ".h", ".conf", ".yaml", ".frag")
)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
JSON = re.compile(r"^```json$(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
SOURCE_PATH = re.compile(r"`((?:agent|bird|cni-bin|ebpf|image|manifests|tests)/[\w./-]*)`")
NAMED = re.compile(r"\bdocs/[\w./-]+\.md(?:#[\w-]+)?")


def prose(page: Path) -> str:
    """Return the text of a page without its blocks of code."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    found: set[str] = set()
    for heading in HEADING.findall(prose(page)):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        found.add(
            next(name for number in range(99) if (name := f"{slug}-{number}" if number else slug) not in found)
        )
    return found


def links(page: Path) -> Iterator[str]:
    """Yield the targets of all links and images of a page that are in the repository."""
    for match in LINK.finditer(CODE.sub("", prose(page))):
        target = match[1] or match[2]
        if not re.match(r"[a-z]+:", target):
            yield target


def fault(target: str, base: Path) -> str:
    """Return what is wrong with a link's target, seen from the folder or page `base`; empty if nothing is."""
    name, _, anchor = target.partition("#")
    path = (base if base.is_dir() else base.parent) / name if name else base
    if not path.exists():
        return f"{target}: no such file"
    if anchor and anchor not in anchors(path):
        return f"{target}: no such heading"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert [found for target in links(page) if (found := fault(target, page))] == []


def test_pages_that_the_sources_name_exist() -> None:
    faults = [
        f"{path.relative_to(REPO)}: {found}"
        for path in SOURCES
        for target in NAMED.findall(path.read_text())
        if (found := fault(target, REPO))
    ]
    assert faults == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_source_files_that_a_page_names_exist(page: Path) -> None:
    assert [path for path in SOURCE_PATH.findall(page.read_text()) if not (REPO / path).exists()] == []


def test_every_page_is_reached_from_the_readme() -> None:
    seen, todo = set[Path](), [REPO / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        todo += [(page.parent / target.partition("#")[0]).resolve() for target in links(page) if target[0] != "#"]
    assert sorted(set(REPO.glob("docs/**/*.md")) - seen) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` (c)\n## Twice\n## Twice\n```\n# no heading [x](none.md)\n```\n[a](#a-b-c) [b](#twice-1) `[c](d)`"
    )
    assert [fault(target, page) for target in links(page)] == ["", ""]
    assert [target for target in ("#no-heading", "none.md", "page.md#none") if not fault(target, page)] == []


def test_references_of_links_are_defined() -> None:
    for page in PAGES:
        text = CODE.sub("", prose(page))
        defined = re.findall(r"^\[([\w-]+)\]: ", text, re.MULTILINE)
        assert sorted(set(re.findall(r"\]\[([\w-]+)\]", text))) == sorted(defined), page.name


def test_lines_have_at_most_120_characters() -> None:
    """Except rows of tables and descriptions of images, which cannot be divided, and generated text."""
    long = [
        f"{page.relative_to(REPO)}: {line}"
        for page in PAGES
        for line in reference.MARK.sub("", page.read_text()).splitlines()
        if len(line) > 120 and not line.lstrip().startswith(("|", "<img "))
    ]
    assert long == []


def test_one_page_compares_the_modes() -> None:
    """Others link to it: what is said twice is changed once."""
    row = re.compile(r"^\| \[(vxlan|ipip)\]\(", re.MULTILINE)
    assert [str(page.relative_to(REPO)) for page in PAGES if row.search(prose(page))] == ["README.md"]
    assert set(
        re.findall(r"^\| \[([\w-]+)\]\(docs/modes/", (REPO / "README.md").read_text(), re.MULTILINE)
    ) == set(MODES)


@pytest.mark.parametrize("light", sorted(REPO.glob("docs/images/*-light.svg")), ids=lambda path: path.name)
def test_a_drawing_differs_in_its_colours_only(light: Path) -> None:
    """So a change of a drawing is made in both variants."""
    dark = light.with_name(light.name.replace("-light", "-dark"))
    style = re.compile(r"<style>.*</style>", re.DOTALL)
    assert style.sub("", light.read_text()) == style.sub("", dark.read_text())


def confs(page: Path) -> list[Network]:
    """Return the networks of the confs and conflists that a page shows. Raises CniError."""
    docs = [json.loads(block) for block in JSON.findall(page.read_text())]
    entries = [
        {"cniVersion": doc["cniVersion"], "name": doc["name"], **doc.get("plugins", [doc])[0]} for doc in docs
    ]
    return [parse_conf(entry).network for entry in entries]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_confs_on_a_page_are_accepted(page: Path) -> None:
    assert all(network.name == "testcni" for network in confs(page))


@pytest.mark.parametrize("mode", MODES)
def test_the_page_of_a_mode_has_the_usual_sections_and_a_conf(mode: str) -> None:
    page = REPO / f"docs/modes/{mode}.md"
    sections = ["What it is for", "Needs", "Configure", "Packet by packet", "Limits", "When it fails"]
    assert re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE) == sections
    assert [network.mode for network in confs(page)] == [mode]
