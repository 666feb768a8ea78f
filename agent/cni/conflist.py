"""Read conf files as libcni does (containernetworking/cni v1.3, libcni/conf.go), as runtimes use libcni.

libcni accepts all files that are accepted here, and plugins get the same netconf. Faults raise CniError 6 or 7.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.codec.json_fields import CNI_NAME, CNI_NAME_ALLOWED
from agent.errors import CniError, Code, invalid_config
from agent.runtime.atomic_file import read as contents

LIST, PLAIN = ".conflist", (".conf", ".json")  # containerd and CRI-O load the first of these files by name
LONGEST = 128 << 10  # bytes: also when the runtime escapes them, they fit into the plugin's limit of 1 MiB
DEEPEST = 500  # levels of nesting: the plugin accepts 512
CURRENT = (1, 1, 0)  # the version of libcni v1.3, which ignores newer ones in `cniVersions`
VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,2}")
SWITCHES = ("disableCheck", "disableGC", "loadOnlyInlinedPlugins")

Check = Callable[[str, object], None]


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin of a list, and the netconf with which the runtime calls it."""

    type: str
    conf: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ConfList:
    """A network as the runtime loads it."""

    name: str
    version: str
    plugins: tuple[Plugin, ...]


def files(folder: Path) -> list[Path]:
    """Return the files of a conf folder that runtimes load, in their order. Raises OSError."""
    return _files(folder, (LIST, *PLAIN))


def read(path: Path, data: bytes) -> ConfList:
    """Return the network of a conf file with this content; its suffix says whether it is a list.

    Raises CniError, and OSError if the directory of further plugins can't be read.
    """
    return conflist(data, path.parent) if _suffix(path.name) == LIST else _plain(data)


def conflist(data: bytes, folder: Path) -> ConfList:
    """Return the network of a conflist in this folder; `NAME/*.conf` may add plugins. Raises CniError, OSError."""
    doc = _object(data)
    name = _name(doc)
    version = _version(doc)
    switches = {key: _switch(key, doc[key]) for key in SWITCHES if key in doc}
    if "plugins" not in doc:
        what = f"has no list `plugins`, so it is no conflist (keys: {', '.join(sorted(doc))})"
        raise CniError(
            Code.INVALID_CONFIG, what, 'write {"cniVersion": …, "name": …, "plugins": [{"type": …}, …]}'
        )
    entries = doc["plugins"]
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise invalid_config("plugins", entries, "a list of at least one JSON object")
    found = [(f"plugins[{number}]", entry) for number, entry in enumerate(entries)]
    if not switches.get("loadOnlyInlinedPlugins"):
        found += [(str(path), _object(contents(path))) for path in _files(folder / name, (".conf",))]
    return _network(name, version, found)


def found(value: object, *keys: str) -> Iterator[Any]:
    """Yield each value at a path of keys. The case of keys is ignored, as Go's encoding/json does for structs."""
    if not keys:
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if _folded(key) == keys[0].lower():
                yield from found(inner, *keys[1:])


def _plain(data: bytes) -> ConfList:
    """Return the list that runtimes make of a netconf of one plugin."""
    doc = _object(data, repeated=False)
    if "type" not in doc and "plugins" in doc:
        raise CniError(
            Code.INVALID_CONFIG, "is a conflist, which runtimes load only from a file *.conflist", "rename it"
        )
    read = {_folded(key): value for key, value in doc.items()}  # no key occurs twice
    name = _name(read)
    return _network(name, _version({"cniVersion": read.get("cniversion") or ""}), [("netconf", doc)])


def _network(name: str, version: str, entries: list[tuple[str, dict[str, Any]]]) -> ConfList:
    given = {"name": name, "cniVersion": version}
    return ConfList(name, version, tuple(Plugin(_type(w, entry), {**entry, **given}) for w, entry in entries))


def _object(data: bytes, *, repeated: bool = True) -> dict[str, Any]:
    """Return the JSON object as Go's encoding/json reads it. Raises CniError 6."""
    if len(data) > LONGEST:
        raise CniError(Code.DECODING_FAILURE, f"is longer than {LONGEST} bytes", "shorten it")
    try:
        text = data.decode()
        hook = None if repeated else _unique
        doc = json.loads(
            text, parse_int=_number, parse_float=_number, parse_constant=_number, object_pairs_hook=hook
        )
        json.dumps(doc, ensure_ascii=False).encode()  # no half of a surrogate pair
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        what, remedy = f"is no JSON: {error.msg} at {where}", ""
        if data.startswith(b"\xef\xbb\xbf"):
            what, remedy = "is no JSON: begins with a byte order mark", "save it as plain UTF-8"
        elif not data.strip():
            what, remedy = "is empty", "write a conflist into it"
        raise CniError(Code.DECODING_FAILURE, what, remedy) from error
    except (ValueError, RecursionError) as error:
        raise CniError(Code.DECODING_FAILURE, f"is not JSON that runtimes can read: {error}") from error
    if not isinstance(doc, dict):
        raise CniError(Code.DECODING_FAILURE, f"is a JSON {type(doc).__name__}, not an object")
    if _is_deep(doc):
        raise CniError(Code.DECODING_FAILURE, f"is nested deeper than {DEEPEST} levels")
    return doc


def _number(text: str) -> int | float:
    """Return a number as libcni reads it, which is a double. Raises ValueError."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} does not fit into a double")
    return (
        int(value) if value.is_integer() and abs(value) < 1e21 else value
    )  # Go writes larger numbers with an exponent


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({_folded(key) for key, _value in pairs}) < len(pairs):
        raise ValueError("a key occurs twice; libcni ignores the case of letters")
    return dict(pairs)


def _is_deep(doc: object) -> bool:
    level = [doc]
    for _ in range(DEEPEST):
        level = [v for value in level for v in _within(value)]
        if not level:
            return False
    return True


def _within(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _name(doc: dict[str, Any]) -> str:
    name = doc.get("name")
    if not isinstance(name, str) or not CNI_NAME.fullmatch(name):
        raise invalid_config("name", name, f"{CNI_NAME_ALLOWED}, beside `plugins` and not in it")
    return name


def _version(doc: dict[str, Any]) -> str:
    """Return the version that the runtime requests of plugins: the newest of `cniVersions` that libcni knows."""
    version = doc.get("cniVersion", "")
    if not isinstance(version, str):
        raise invalid_config("cniVersion", version, "a string such as 1.0.0")
    if "cniVersions" not in doc:
        return version
    versions = doc["cniVersions"]
    every = (*versions, version) if isinstance(versions, list) else ()
    if not every or not all(isinstance(each, str) and (not each or VERSION.fullmatch(each)) for each in every):
        raise invalid_config("cniVersions", versions, "a list of versions such as 1.0.0, as cniVersion is one")
    return max((each for each in every if each and _ordered(each) <= CURRENT), key=_ordered, default=version)


def _ordered(version: str) -> tuple[int, ...]:
    parts = [int(part) for part in version.split(".")]
    return (*parts, *[0] * (3 - len(parts)))


def _switch(key: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in ("true", "false"):
        raise invalid_config(key, value, "true, false")
    return value.lower() == "true"


def _type(where: str, entry: dict[str, Any]) -> str:
    """Return the type of a plugin, after a check of the fields that libcni's struct has."""
    kind = _struct(where, entry, PLUGIN)
    if not isinstance(kind, str) or not kind or "/" in kind:
        raise invalid_config(f"{where}.type", kind, "the name of a program in the plugin folder")
    return kind


def _struct(where: str, value: object, fields: Mapping[str, Check]) -> object:
    """Check the fields of an object as Go reads them into a struct, and return its `type`."""
    if not isinstance(value, dict):
        raise invalid_config(where, value, "a JSON object")
    kind = None
    for key in sorted(value):  # libcni writes them in this order, so the last one counts
        name = _folded(key)
        if name in fields and value[key] is not None:
            fields[name](f"{where}.{key}", value[key])
            kind = value[key] if name == "type" else kind
    return kind


def _folded(key: str) -> str:
    """Return a key in the form in which Go compares it: in lower case; the letters s and k have a third form."""
    return key.lower().replace("\u017f", "s")  # lower() makes k of the Kelvin sign


def _text(where: str, value: object) -> None:
    if not isinstance(value, str):
        raise invalid_config(where, value, "a string")


def _texts(where: str, value: object) -> None:
    if not isinstance(value, list) or not all(item is None or isinstance(item, str) for item in value):
        raise invalid_config(where, value, "a list of strings")


def _booleans(where: str, value: object) -> None:
    if not isinstance(value, dict) or not all(item is None or isinstance(item, bool) for item in value.values()):
        raise invalid_config(where, value, "a JSON object whose values are true or false")


def _object_of(fields: Mapping[str, Check]) -> Check:
    def check(where: str, value: object) -> None:
        _struct(where, value, fields)

    return check


def _attachments(where: str, value: object) -> None:
    if not isinstance(value, list):
        raise invalid_config(where, value, "a list of JSON objects")
    for number, item in enumerate(value):
        if item is not None:
            _struct(f"{where}[{number}]", item, {"containerid": _text, "ifname": _text})


PLUGIN: Mapping[str, Check] = {
    **dict.fromkeys(("cniversion", "name", "type"), _text),
    "capabilities": _booleans,
    "ipam": _object_of({"type": _text}),
    "dns": _object_of({"nameservers": _texts, "domain": _text, "search": _texts, "options": _texts}),
    "prevresult": _object_of({}),
    "cni.dev/valid-attachments": _attachments,
}
"""The fields of types.PluginConf, in lower case, as Go ignores the case of keys."""


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    try:
        found = [entry.name for entry in folder.iterdir() if _suffix(entry.name) in suffixes]
    except FileNotFoundError:
        return []
    paths = [folder / name for name in sorted(found)]
    return [path for path in paths if path.is_symlink() or not path.is_dir()]


def _suffix(name: str) -> str:
    """Return the name from the last dot on, also of a hidden file (Go's filepath.Ext)."""
    return name[name.rfind(".") :] if "." in name else ""
