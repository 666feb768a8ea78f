"""The pages of docs/reference say what the code says: options, objects, error codes, Events, annotations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import cli, ctl, options, uninstall
from agent.cluster import accepted_modes, node_condition, usage_objects
from agent.cluster.metadata_object import ANNOTATION_PREFIX
from agent.errors import Code
from agent.ipam.reservations import claims, off_block_pods, pod_annotations
from agent.modes.ipip import bgp
from agent.publish import network_policies, node_events, pool_status_writer
from tests import reference
from tests.lab.space import REPO
from tests.networks import AGENT_OPTIONS

REFERENCE = REPO / "docs/reference"
PLUGIN = (REPO / "cni-bin/testcni.c").read_text()


def first_cells(page: str, heading: str) -> Iterator[str]:
    """Yield the first cells of the tables in a section."""
    section = (REFERENCE / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = (line for line in section.splitlines() if line.startswith("| "))
    return (row.strip("| ").split(" | ")[0].strip("`") for row in rows)


@pytest.mark.parametrize("page", reference.pages(), ids=lambda page: page.name)
def test_a_page_is_as_the_code_says(page: Path) -> None:
    text = page.read_text()
    assert reference.rendered(text) == text, "make reference"


def test_each_part_that_is_made_is_on_one_page() -> None:
    names = [name for page in reference.pages() for _, name, _ in reference.MARK.findall(page.read_text())]
    assert sorted(names) == sorted(reference.BLOCKS)


def test_a_stale_page_is_found() -> None:
    page = "<!-- made by make reference: options -->\nan earlier table\n<!-- end -->\n"
    assert "an earlier table" not in reference.rendered(page)
    assert "| `route-protocol` | `TESTCNI_ROUTE_PROTOCOL` | `116` |" in reference.rendered(page)


def test_the_configmap_has_every_option_with_its_default() -> None:
    text = (REPO / "manifests/base/config.yaml").read_text().partition("config.yaml: |\n")[2]
    lines = re.findall(r"^ {4}(# )?([a-z-]+):(?: (\S+))?$", text, re.MULTILINE)
    defaults = {option.name: option.default or "" for option in (*options.OPTIONS, *AGENT_OPTIONS)}
    assert sorted(name for _, name, _ in lines) == sorted(defaults)
    assert [name for comment, name, value in lines if comment and value != defaults[name]] == []


def test_the_error_codes_are_those_of_agent_and_plugin() -> None:
    _head, *codes = first_cells("error-codes.md", "CNI error codes")
    assert list(map(int, codes)) == [int(code) for code in Code]
    plugins = re.findall(r"(\w+) = (\d+)", re.findall(r"enum code \{([^}]*)\}", PLUGIN)[0])
    assert {int(number) for _name, number in plugins} <= {int(code) for code in Code}


def test_the_exit_codes_are_those_of_the_programs() -> None:
    text = (REFERENCE / "error-codes.md").read_text().partition("## Exit codes")[2]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "
    ]
    head, *programs = rows
    found = {
        row[0].strip("`"): {int(n) for n, cell in zip(head[1:], row[1:], strict=True) if cell} for row in programs
    }
    agent = {0, cli.EXIT_FAILED, cli.EXIT_USAGE, cli.EXIT_BUSY}
    assert found == {
        "testcni-agent": agent,
        "testcni-uninstall": {*agent, uninstall.EXIT_DATASTORE},
        "testcnictl status": {0, ctl.EXIT_PROBLEMS, cli.EXIT_USAGE, ctl.EXIT_UNABLE, ctl.EXIT_NO_AGENT},
        "testcnictl monitor": {0, cli.EXIT_USAGE, ctl.EXIT_UNABLE},
    }


def test_the_reasons_are_those_of_events_and_conditions() -> None:
    _head, *reasons = first_cells("events.md", "Events")
    assert set(reasons) == {
        node_events.PROBLEM,
        claims.REASON,
        pod_annotations.UNKNOWN,
        off_block_pods.REASON,
        network_policies.REASON,
    }
    text = (REFERENCE / "events.md").read_text()
    for name in (node_condition.TYPE, node_condition.REASON):
        assert f"`{name}`" in text
    pools = text.partition("## Conditions of an IPPool")[2]
    found = re.findall(r"^\| `\w+` \| (\w+) \| `(\w+)` \|", pools, re.MULTILINE)
    writer = pool_status_writer
    assert found == [("True", writer.USABLE), ("False", writer.UNUSABLE), ("False", writer.ON_NODE)]


def test_the_annotations_and_labels_are_those_of_the_code() -> None:
    page = (REFERENCE / "annotations.md").read_text()
    rows = re.findall(rf"^\| `{ANNOTATION_PREFIX}(\S+)` \| ([\w, ]+) \|", page, re.MULTILINE)
    kinds = {
        key: ", ".join(kind for kind, known in pod_annotations.KNOWN.items() if key in known)
        for known in pod_annotations.KNOWN.values()
        for key in known
    }
    ours = [*kinds.items(), (accepted_modes.ANNOTATION, "Node"), (bgp.REFLECTOR, "Node")]
    ours += [(label, "IPBlockUsage") for label in (usage_objects.NODE_LABEL, usage_objects.POOL_LABEL)]
    assert sorted(rows) == sorted((name.removeprefix(ANNOTATION_PREFIX), kind) for name, kind in ours)
