"""The agent reads conf files as libcni does, and plugins get what the agent expects them to get."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.cni import conflist
from agent.errors import CniError
from tests.lab import gotools

OURS = {"type": "testcni", "mtu": 1400, "agentWait": 60, "ipam": {"routes": [{"dst": "10.0.0.0/8"}]}}
PORTMAP = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}
GOOD: dict[str, Any] = {"cniVersion": "1.0.0", "name": "testcni", "plugins": [OURS, PORTMAP]}
PLAIN = {"cniVersion": "1.0.0", "name": "testcni", **OURS}


def _list(**fields: object) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


def _plugin(**fields: object) -> bytes:
    return _list(plugins=[{**OURS, **fields}])


def _without(*keys: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key not in keys}).encode()


REFUSED = {
    "a plain netconf": json.dumps(PLAIN).encode(),
    "a byte order mark": b"\xef\xbb\xbf" + _list(),
    "UTF-16": _list().decode().encode("utf-16"),
    "a name only in a plugin": json.dumps({"plugins": [{**OURS, "name": "testcni"}]}).encode(),
    "a name of another case": _without("name")[:-1] + b', "Name": "testcni"}',
    "no name": _without("name"),
    "an empty name": _list(name=""),
    "a name of blanks": _list(name="test cni"),
    "a name that begins with -": _list(name="-x"),
    "a name with a line's end": _list(name="testcni\n"),
    "a name that is null": _list(name=None),
    "a name that is a number": _list(name=7),
    "a version that is a number": _list(cniVersion=1.0),
    "a version that is null": _list(cniVersion=None),
    "versions that are text": _list(cniVersions="1.0.0"),
    "versions that are no versions": _list(cniVersions=["new"]),
    "versions of four parts": _list(cniVersions=["1.0.0.0"]),
    "versions beside a version that is none": _list(cniVersion="new", cniVersions=["1.0.0"]),
    "versions that are null": _list(cniVersions=None),
    "no plugins": _list(plugins=[]),
    "plugins that are null": _list(plugins=None),
    "plugins that are an object": _list(plugins=OURS),
    "a plugin that is text": _list(plugins=["testcni"]),
    "a plugin that is null": _list(plugins=[OURS, None]),
    "a plugin without a type": _list(plugins=[OURS, {"snat": True}]),
    "a plugin of type null": _list(plugins=[OURS, {"type": None}]),
    "a plugin whose type is a number": _list(plugins=[OURS, {"type": 5}]),
    "a type in other letters that is a number": _plugin(TYPE=5),
    "a plugin's name that is a number": _plugin(name=5),
    "capabilities as a list": _plugin(capabilities=["ips"]),
    "capabilities as text": _plugin(capabilities={"ips": "true"}),
    "ipam as text": _plugin(ipam="host-local"),
    "ipam's type as a list": _plugin(ipam={"type": []}),
    "ipam's type in the Turkish way": _plugin(ipam={"TYPE": []}),
    "dns as a list": _plugin(dns=["10.0.0.10"]),
    "name servers as text": _plugin(dns={"nameservers": "10.0.0.10"}),
    "name servers with a long s": _plugin(dns={"name\u017fervers": "10.0.0.10"}),
    "a previous result as a list": _plugin(prevResult=[]),
    "attachments as an object": _plugin(**{"cni.dev/valid-attachments": {}}),
    "attachments of numbers": _plugin(**{"cni.dev/valid-attachments": [{"containerID": 1}]}),
    "disableCheck as a number": _list(disableCheck=1),
    "disableCheck as yes": _list(disableCheck="yes"),
    "disableCheck as null": _list(disableCheck=None),
    "disableGC as an object": _list(disableGC={}),
    "loadOnlyInlinedPlugins as 0": _list(loadOnlyInlinedPlugins=0),
    "trailing data": _list() + b" {}",
    "a trailing comma": _list()[:-1] + b",}",
    "a comment": b"// testcni\n" + _list(),
    "NaN": _plugin(mtu=float("nan")),
    "Infinity": _plugin(mtu=float("inf")),
    "a number that no double holds": _plugin().replace(b"1400", b"1e400"),
    "a number of 5,000 digits": _plugin().replace(b"1400", b"9" * 5000),
    "a line's end in text": _list().replace(b"testcni", b"test\ncni", 1),
    "an array": b"[]",
    "null": b"null",
    "nothing": b"",
    "a NUL at the end": _list() + b"\0",
    "nested deep": _plugin(x=1).replace(b'"x": 1', b'"x": ' + b"[" * 10_001 + b"]" * 10_001),
}
ACCEPTED = {
    "as in the manifests": _list(),
    "with blanks around": b"\r\n\t " + _list() + b"\n\n",
    "a name twice": _list()[:-1] + b', "name": "second"}',
    "disableCheck as text": _list(disableCheck="TRUE"),
    "versions": _list(cniVersions=["0.4.0", "1.1.0", "9.9.9"]),
    "versions without a version": _without("cniVersion")[:-1] + b', "cniVersions": ["0.4.0", "1.0.0"]}',
    "no version": _without("cniVersion"),
    "only these plugins": _list(loadOnlyInlinedPlugins=True),
    "fields that are null": _plugin(capabilities=None, ipam=None, dns=None, prevResult=None, name=None),
    "large numbers": _plugin().replace(b"1400", b"12345678901234567890123"),
    "a number with a fraction": _plugin().replace(b"1400", b"1.4e3"),
    "names of others": _plugin(name="other", cniVersion="0.1.0"),
    "text of all kinds": _plugin(text='<ü😀&"\u2028\\'),
}


@pytest.fixture(scope="module")
def judge() -> str:
    try:
        return str(gotools.libcni())
    except gotools.NoGoError as error:
        pytest.skip(f"libcni can't be built: {error}")


def libcni_of(judge: str, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return what libcni makes of each file."""
    lines = "".join(f"{path}\n" for path in paths)
    done = subprocess.run([judge], input=lines, capture_output=True, text=True, check=True, timeout=60)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(paths)
    return found


def ours_of(path: Path) -> dict[str, Any]:
    """Return what the agent makes of it, in the same form."""
    try:
        conf = conflist.read(path, path.read_bytes())
    except (CniError, OSError) as error:
        return {"Error": str(error)}
    types, confs = [plugin.type for plugin in conf.plugins], [plugin.conf for plugin in conf.plugins]
    return {"Error": "", "Name": conf.name, "Types": types, "Confs": confs, "Version": conf.version}


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_a_conflist_that_libcni_refuses_is_refused(judge: str, tmp_path: Path) -> None:
    paths = [written(tmp_path, f"{n}.conflist", data) for n, data in enumerate(REFUSED.values())]
    verdicts = zip(REFUSED, paths, libcni_of(judge, paths), strict=True)
    wrong = {name: (theirs["Error"], ours_of(path)["Error"]) for name, path, theirs in verdicts}
    assert [name for name, (_theirs, ours) in wrong.items() if not ours] == []
    assert [name for name, (theirs, _ours) in wrong.items() if not theirs] == [], "the table is wrong"


def test_plugins_get_what_the_agent_took_them_to_get(judge: str, tmp_path: Path) -> None:
    paths = [written(tmp_path, f"{n}.conflist", data) for n, data in enumerate(ACCEPTED.values())]
    for name, path, theirs in zip(ACCEPTED, paths, libcni_of(judge, paths), strict=True):
        assert ours_of(path) == theirs, name


def test_files_are_read_by_their_names(judge: str, tmp_path: Path) -> None:
    twice = json.dumps(PLAIN)[:-1] + ', "type": 5}'
    other_case = json.dumps(PLAIN)[:-1] + ', "NAME": "other"}'
    files = {
        "a.conf": json.dumps(PLAIN), "b.json": json.dumps(PLAIN), "c.conf": json.dumps(GOOD),
        "d.json": json.dumps({"name": "x"}), "e.conf": twice, "f.conf": other_case, "g.conf": json.dumps(OURS),
        "h.conf": json.dumps({**PLAIN, "cniVersion": None}), ".conflist": json.dumps(GOOD),
        "i.conf": json.dumps({"NAME": "x", "cniVer\u017fion": "0.4.0", **OURS}, ensure_ascii=False),
    }  # fmt: skip
    paths = [written(tmp_path, name, text.encode()) for name, text in files.items()]
    for path, theirs in zip(paths, libcni_of(judge, paths), strict=True):
        ours = ours_of(path)
        assert ours["Error"] or ours == theirs, path.name
    assert [path.name for path in paths if not ours_of(path)["Error"]] == [
        "a.conf",
        "b.json",
        "h.conf",
        ".conflist",
        "i.conf",
    ]


@pytest.mark.parametrize("text", ["{", '{"snat": true}', '{"type": 5}', '{"type": "tuning"}', None])
def test_plugins_of_a_folder_beside_a_conflist_count(judge: str, tmp_path: Path, text: str | None) -> None:
    path = written(tmp_path, "10.conflist", _list())
    if text is None:
        written(tmp_path, "testcni", b"no folder")
    else:
        (tmp_path / "testcni" / "skipped.conf").mkdir(parents=True)
        written(tmp_path / "testcni", "20-more.conf", text.encode())
        written(tmp_path / "testcni", "README", b"{")
    (theirs,) = libcni_of(judge, [path])
    ours = ours_of(path)
    assert bool(ours["Error"]) == bool(theirs["Error"])
    assert ours["Error"] or ours == theirs
    inline = written(tmp_path, "20.conflist", _list(loadOnlyInlinedPlugins=True))
    assert ours_of(inline) == libcni_of(judge, [inline])[0]


ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    1e300,
    "",
    "true",
    "x/y",
    "é\u2028",
    [],
    [None],
    ["a", 1],
    {},
    {"type": 1},
)
KEYS = (
    "name",
    "cniVersion",
    "cniVersions",
    "type",
    "disableCheck",
    "loadOnlyInlinedPlugins",
    "dns",
    "ipam",
    "prevResult",
)


def mutants(chance: random.Random, count: int) -> Iterator[bytes]:
    """Good conflists and netconfs with some faults, in their structure or their bytes."""
    for _ in range(count):
        doc: dict[str, Any] = json.loads(json.dumps(chance.choice((GOOD, GOOD, PLAIN))))
        for _ in range(chance.randrange(3)):
            places = [doc, *(p for p in doc.get("plugins") or [] if isinstance(p, dict))]
            place = chance.choice(places)
            key = chance.choice((*place, *KEYS))
            key = chance.choice((key, key, key.upper(), key.title(), key.replace("s", "\u017f")))
            match chance.randrange(3):
                case 0:
                    place.pop(key, None)
                case 1:
                    place[key] = chance.choice(ODD)
                case _:
                    place[key] = place.get(chance.choice((*place, "x")))
            if not isinstance(doc.get("plugins", []), list):
                break
        data = bytearray(json.dumps(doc, ensure_ascii=chance.random() < 0.5).encode())
        for _ in range(chance.choice((0, 0, 1, 2))):
            at = chance.randrange(len(data))
            end = at + chance.randrange(3)
            data[at:end] = chance.choice(
                (b"", b'"', b"\\", b",", b"0", b"e9", b"\\u00e9", b"\xff", b"\xef\xbb\xbf", b" ")
            )
            if not data:
                break
        yield bytes(data)


def test_whatever_is_accepted_libcni_accepts(judge: str, tmp_path: Path) -> None:
    seed = random.SystemRandom().getrandbits(32)
    chance = random.Random(seed)
    kinds = (".conflist", ".conflist", ".conf", ".json")
    paths = [written(tmp_path, f"{n}{chance.choice(kinds)}", data) for n, data in enumerate(mutants(chance, 1500))]
    accepted = refused = 0
    for path, theirs in zip(paths, libcni_of(judge, paths), strict=True):
        ours = ours_of(path)
        if ours["Error"]:
            refused += 1
            continue
        accepted += 1
        assert ours == theirs, (seed, path.name, path.read_bytes())
    assert accepted > 100
    assert refused > 100
