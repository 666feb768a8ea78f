"""The program `nft`: list a table, replace it in one transaction, compare two lists of objects.

Objects have the form of libnftables-json(5); a table and its objects are owned by the caller that names it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from agent.codec import strict_json
from agent.codec.strict_json import JsonError

TIMEOUT = 20.0  # seconds; nft takes 5 ms

Object = Mapping[str, Any]
"""An object, statement or expression by its kind, such as `{"set": {...}}`."""


class NftError(OSError):
    """Report that nft is missing, or that it refused; its own words are in the message."""


class UnreadableError(NftError):
    """Report that nft lists a table, but not as JSON: 1.0.6 fails so at flags that it does not know."""


def list_table(family: str, name: str) -> list[Object]:
    """Return the objects of a table with the table itself; none when there is no such table.

    Raises NftError, and UnreadableError where the list is no JSON.
    """
    try:
        # protocols as numbers (-p), as their names depend on nft's version and on /etc/protocols
        out = _run(["-j", "-p", "list", "table", family, name])
    except NftError as error:
        if "No such file or directory" in str(error):
            return []
        raise
    try:
        entries = strict_json.tolerant(out.encode())["nftables"]
        return [entry for entry in entries if "metainfo" not in entry]
    except (JsonError, KeyError, TypeError) as error:
        raise UnreadableError(f"nft lists what is no ruleset: {error!r}; see that nft is 1.0 or newer") from error


def replace_table(table: Object, objects: list[Object]) -> None:
    """Replace a table by these objects in one transaction; without objects it is deleted. Raises NftError."""
    table = _without_empty_lists({"table": table})
    commands = [{"add": table}, {"delete": table}, *({"add": _without_empty_lists(o)} for o in objects)]
    _run(["-j", "-f", "-"], json.dumps({"nftables": commands}))


def is_same(wanted: list[Object], actual: list[Object]) -> bool:
    """Return whether the kernel has these objects and no other; keys that `wanted` lacks are nft's own."""
    return len(wanted) == len(actual) and includes(actual, wanted)


def includes(actual: list[Object], wanted: list[Object]) -> bool:
    """Return whether the kernel has these objects, among others or not."""
    return all(any(_fits(mine, its) for its in actual if its.keys() == mine.keys()) for mine in wanted)


def _without_empty_lists(wanted: Object) -> Object:
    """Return an object as nft reads it: it takes no empty list of elements or flags."""
    return {
        kind: {k: v for k, v in body.items() if k not in ("elem", "flags") or v} for kind, body in wanted.items()
    }


def _fits(wanted: Object, actual: Object) -> bool:
    ((kind, mine),), its = wanted.items(), next(iter(actual.values()))
    return all(_normal(kind, key, mine[key]) == _normal(kind, key, its.get(key)) for key in mine)


def _normal(kind: str, key: str, value: Any) -> Any:  # noqa: ANN401 - JSON of any shape
    """Return a value in the form in which two can be compared.

    Elements come in any order, and a single flag stands alone or in a list, depending on nft's version.
    """
    if (kind, key) == ("set", "elem"):
        return frozenset(_network(element) for element in value or ())
    if key == "flags":
        return [value] if isinstance(value, str) else value or []
    if key == "counter":
        return None
    if isinstance(value, dict):
        return {k: _normal(kind, k, v) for k, v in value.items()}
    return [_normal(kind, "", item) for item in value] if isinstance(value, list) else value


def _network(element: Any) -> Any:  # noqa: ANN401 - what others added may have any shape
    if isinstance(element, dict) and "prefix" in element:
        element = f"{element['prefix']['addr']}/{element['prefix']['len']}"
    return ipaddress.ip_network(element) if isinstance(element, str) else json.dumps(element)


def _run(args: list[str], stdin: str = "") -> str:
    """Run nft and return what it writes. Raises NftError."""
    try:
        done = subprocess.run(
            ["nft", *args], input=stdin, capture_output=True, text=True, errors="replace",
            timeout=TIMEOUT, check=False,
            env={**os.environ, "LC_ALL": "C"},  # an error message is understood above
        )  # fmt: skip
    except FileNotFoundError as error:
        raise NftError("nft is not installed; Debian's package is nftables") from error
    except subprocess.TimeoutExpired as error:
        raise NftError(f"nft did not end within {TIMEOUT:.0f} s") from error
    if done.returncode != 0:
        raise NftError(f"nft: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
