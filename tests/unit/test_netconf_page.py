"""docs/reference/netconf.md says what the parser does: fields, defaults, allowed values and modes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from agent.errors import CniError, Code
from agent.modes.parent.options import IpvlanOptions, MacvlanOptions
from tests.lab.space import REPO
from tests.networks import MODES, parse_conf

LINK_MODES = {kind.mode: kind.link_modes for kind in (IpvlanOptions, MacvlanOptions)}
PAGE = (REPO / "docs/reference/netconf.md").read_text()
PLUGIN = (REPO / "cni-bin/testcni.c").read_text()
CODE = re.compile(r"`([^`]+)`")
PARENTS = "macvlan and ipvlan"
BASES: dict[str, dict[str, Any]] = {
    "vxlan": {"mode": "vxlan"},
    "ipip": {"mode": "ipip"},
    PARENTS: {"mode": "macvlan", "subnet": "10.0.0.0/24"},
}
"""What a netconf needs for the fields of a section."""
EXAMPLES = {
    "master": "eth0",
    "linkMode": "l2",
    "ipam.gateway": "10.0.0.1",
    "ipam.probe": True,
    "viaHost": ["10.0.0.0/8"],
}


@dataclass(frozen=True)
class Row:
    """A field as the page has it."""

    section: str
    name: str
    default: str
    allowed: str

    @property
    def base(self) -> dict[str, Any]:
        return {"name": "n", **BASES.get(self.section, {})}

    def conf(self, value: object, base: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return a netconf that has this value."""
        outer, _, inner = self.name.rpartition(".")
        given = {self.name: value} if not outer else {outer: {inner: value}}
        return {**(self.base if base is None else base), **given}

    def literals(self, cell: str) -> list[Any]:
        return [json.loads(text) for text in CODE.findall(cell)]


def rows() -> Iterator[Row]:
    """Yield the fields of tables that have defaults."""
    for section in PAGE.split("\n## ")[1:]:
        title = section.partition("\n")[0]
        for line in section.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            if line.startswith("| `") and len(cells) == 5:
                for name in CODE.findall(cells[0]):
                    yield Row(title, name, cells[2], cells[3])


ROWS = list(rows())


def refused(conf: dict[str, Any]) -> CniError:
    with pytest.raises(CniError) as error:
        parse_conf(conf)
    return error.value


@pytest.mark.parametrize("outer", ["", "ipam."])
def test_every_field_is_on_the_page(outer: str) -> None:
    conf: dict[str, Any] = {"name": "n", outer.strip("."): {"x": 1}} if outer else {"name": "n", "x": 1}
    known = refused(conf).details.removeprefix("allowed: ").split(", ")
    cells = (line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| `"))
    names = {name for cell in cells for name in CODE.findall(cell)}
    if outer:
        assert {name.removeprefix(outer) for name in names if name.startswith(outer)} == set(known)
    else:
        assert {name.partition(".")[0] for name in names if not name.startswith("cni.dev")} == {
            name for name in known if not name.startswith("cni.dev")
        }


@pytest.mark.parametrize("row", [row for row in ROWS if row.default.startswith("`")], ids=lambda row: row.name)
def test_a_default_is_what_is_in_force_without_the_field(row: Row) -> None:
    (default,) = row.literals(row.default)
    assert parse_conf(row.conf(default)) == parse_conf(row.base)


def test_the_plugin_has_the_same_defaults() -> None:
    found = {row.name: row.literals(row.default) for row in ROWS if row.section == "For the plugin"}
    for field, name in (("socket", "socket"), ("state", "stateDir"), ("wait", "agentWait")):
        (text,) = re.findall(rf"defaults = \{{[^}}]*\.{field} = ([^,]+),", PLUGIN, re.DOTALL)
        assert [json.loads(text)] == found[name]


@pytest.mark.parametrize("row", [row for row in ROWS if row.allowed.startswith('`"')], ids=lambda row: row.name)
def test_exactly_the_allowed_words_are_allowed(row: Row) -> None:
    assert refused(row.conf("x")).details.partition(": ")[2].split(", ") == row.literals(row.allowed)


@pytest.mark.parametrize("row", [row for row in ROWS if "` to `" in row.allowed], ids=lambda row: row.name)
def test_exactly_the_allowed_numbers_are_allowed(row: Row) -> None:
    low, high, *more = row.literals(row.allowed)
    for number in (low, high, *more):
        parse_conf(row.conf(number))
    for number in {low - 1, high + 1} - set(more):
        assert refused(row.conf(number)).code == Code.INVALID_CONFIG


def test_exactly_the_allowed_link_modes_are_allowed() -> None:
    (row,) = (row for row in ROWS if row.name == "linkMode")
    found = (part.partition(": ") for part in row.allowed.split("; "))
    assert {mode: tuple(row.literals(words)) for mode, _, words in found} == {
        mode: (*sorted(words, key=("bridge", "l2", *words).index),) for mode, words in LINK_MODES.items()
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", [row for row in ROWS if row.section != "For the plugin"], ids=lambda row: row.name)
def test_only_the_fields_of_parents_are_refused_elsewhere(row: Row, mode: str) -> None:
    parent = mode in LINK_MODES
    base = {"name": "n", **(BASES[PARENTS] if parent else {}), "mode": mode}
    if row.section == PARENTS and not parent:
        assert refused(row.conf(EXAMPLES[row.name], base)).code == Code.INVALID_CONFIG
    elif row.default.startswith("`") and row.name != "mode":
        parse_conf(row.conf(row.literals(row.default)[0], base))
