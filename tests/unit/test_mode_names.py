"""No code outside of agent/modes names a mode: a mode is a folder, or a file, and an entry of the registry."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Sequence

import pytest

from agent.modes.registry import BUILT_IN
from tests.lab.space import REPO
from tests.unit.sources import AGENT, FILES, nodes

pytestmark = pytest.mark.xdist_group("sources")
OF_ONE_MODE = ("hostgw", "host_gw", "bgp", "bird")
"""Words of single modes, beside the modes' names."""
WORDS = re.compile("|".join((*BUILT_IN.names, *OF_ONE_MODE)), re.IGNORECASE)
ALLOWED = {
    "kernel/subinterfaces.py": {
        # the kernel's names of kinds of links and of their attributes (if_link.h)
        *("macvlan", "ipvlan", "MACVLAN", "IPVLAN", "MACVLAN_MODES", "IPVLAN_MODES"),
        *("IFLA_MACVLAN_MODE", "IFLA_IPVLAN_MODE"),
    },
    "options.py": {
        # other programs that set routes, by iproute2's names in rt_protos
        *("bgp", "bird"),
    },
}


def texts(code: Sequence[ast.AST]) -> Iterator[str]:
    """Yield all names and strings of the code, docstrings aside."""
    docstrings = {
        id(statement.value)
        for node in code
        if isinstance(body := getattr(node, "body", None), list)
        for statement in body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    }
    for node in code:
        if id(node) in docstrings:
            continue
        for _field, value in ast.iter_fields(node):
            values = value if isinstance(value, list) else [value]
            yield from (each for each in values if isinstance(each, str))


def naming(code: Sequence[ast.AST]) -> set[str]:
    """Return the names and strings that have the word of a mode."""
    return {text for text in texts(code) if WORDS.search(text)}


def test_only_the_folder_of_modes_names_modes() -> None:
    found = {
        str(path.relative_to(AGENT)): named
        for path in FILES
        if path.relative_to(AGENT).parts[0] != "modes" and (named := naming(nodes(path)))
    }
    assert found == ALLOWED, "ask the mode by agent/modes/base.py, or give what is general a general name"


@pytest.mark.parametrize(
    "code",
    [
        "from agent.modes.ipip import mode",
        "import agent.modes.hostgw",
        "def f(*, bgp): ...",
        "VXLAN_DEVICE = 1",
        "x.bird_status",
        "f(ipip=1)",
        "f'networks of mode {1} vxlan'",
        "def f() -> None:\n    return 'host-gw'",
    ],
)
def test_a_name_is_found_wherever_it_is(code: str) -> None:
    assert naming([*ast.walk(ast.parse(code))])


def test_docstrings_may_explain_by_a_mode() -> None:
    code = '"""As in vxlan."""\nclass A:\n    """As in ipip."""\n    x: int\n    """A bird."""'
    assert not naming([*ast.walk(ast.parse(code))])


def test_each_mode_is_in_the_contract_by_which_modes_do_not_import_each_other() -> None:
    contracts = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (modules,) = (each["modules"] for each in contracts if each["name"] == "a mode knows no other mode")
    folders = {".".join(type(mode).__module__.split(".")[:3]) for mode in BUILT_IN}
    assert folders == set(modules), 'add the module to "a mode knows no other mode" in pyproject.toml'
