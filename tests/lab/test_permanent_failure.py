"""A permanent failure on a node is retried now and then: no part wakes itself or another one at full speed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.lab.lab import CONF_FILE, PLUGIN, SEED_CONF, Lab, LabNode, conf_of, lab
from tests.support import eventually

WINDOW = 6.0  # seconds
ROUNDS = 4  # of a part in the window
LINES = 6  # of the log

CONFLIST = {"cniVersion": "1.0.0", "name": "testcni", "plugins": [json.loads(SEED_CONF)]}
INSTALLS = ("--conflist", "/opt/testcni/conflist")


def bundle(node: LabNode) -> None:
    """The files that an image has to install."""
    node.path("/opt/testcni/bin").mkdir(parents=True)
    (node.path("/opt/testcni/bin") / "testcni").write_bytes(PLUGIN.read_bytes())
    node.path("/opt/testcni/conflist").write_text(json.dumps(CONFLIST))
    node.path(CONF_FILE).unlink()


def read_only(node: LabNode, folder: str) -> None:
    node.path(folder).mkdir(parents=True, exist_ok=True)
    node.space.exec("mount", "--bind", folder, folder)
    node.space.exec("mount", "-o", "remount,bind,ro", folder)


def broken(node: LabNode, program: str) -> None:
    """A program that always fails."""
    found = node.space.exec("sh", "-c", f"command -v {program} || true").stdout.strip()
    if found:
        node.space.exec("mount", "--bind", "/bin/false", found)


def conf_dir_read_only(node: LabNode) -> None:
    bundle(node)
    read_only(node, "/etc/cni/net.d")
    node.start_agent(*INSTALLS)


def bin_dir_read_only(node: LabNode) -> None:
    bundle(node)
    node.path("/opt/cni/bin/testcni").write_bytes(b"old")
    read_only(node, "/opt/cni/bin")
    node.start_agent(*INSTALLS)


def removed_before(node: LabNode) -> None:
    """The folder behind the mount was removed before the agent began."""
    bundle(node)
    node.path("/old/net.d").mkdir(parents=True)
    node.space.exec("mount", "--bind", "/old/net.d", "/etc/cni/net.d")
    node.path("/old/net.d").rmdir()
    node.start_agent(*INSTALLS)


def datastore_read_only(node: LabNode) -> None:
    store = str(node.lab.datastore)
    node.path(store)
    (node.lab.datastore / f"node-{node.name}.yaml").write_text(
        json.dumps({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name},
            "status": {"addresses": [{"type": "InternalIP", "address": node.address}]},
        })
    )  # fmt: skip
    node.lab.put("pool", {
        "apiVersion": "testcni.io/v1", "kind": "IPPool", "metadata": {"name": "pods"},
        "spec": {"cidr": "10.244.0.0/16", "blockSize": 24},
    })  # fmt: skip
    read_only(node, store)
    node.start_agent()


def datastore_missing(node: LabNode) -> None:
    node.start_agent("--datastore", "dir:/nowhere")


def no_nft(node: LabNode) -> None:
    broken(node, "nft")
    node.start_agent()


def foreign_bridge(node: LabNode) -> None:
    node.space.batch(["link add testcni0 type bridge"])
    node.start_agent()


def no_bird(node: LabNode) -> None:
    node.path(CONF_FILE).write_text(str(conf_of("ipip")))
    broken(node, "bird")
    node.start_agent()


def run_dir_full(node: LabNode) -> None:
    node.path("/run/testcni").mkdir(mode=0o700)
    node.space.exec("mount", "-t", "tmpfs", "-o", "nr_inodes=6", "lab", "/run/testcni")
    node.start_agent()


def wrong_conf(node: LabNode) -> None:
    node.path(CONF_FILE).write_text(SEED_CONF.replace("bridge", "bridges"))
    node.start_agent()


CASES: dict[Callable[[LabNode], None], str] = {
    conf_dir_read_only: "Read-only file system",
    bin_dir_read_only: "Read-only file system",
    removed_before: "was removed on the host",
    datastore_read_only: "can't be claimed",
    datastore_missing: "/nowhere",
    no_nft: "nft",
    foreign_bridge: "of that name exists",
    no_bird: "bird",
    run_dir_full: "",
    wrong_conf: "unknown field bridges",
}


def fails(node: LabNode, words: str) -> bool:
    """Return whether the agent serves and says so."""
    told = str(node.problems())
    return words in told and "no agent answers" not in told


@pytest.fixture(scope="module")
def failing() -> Iterator[Lab]:
    """A node of each kind, failing for some seconds already."""
    with lab(len(CASES), agents=False) as it:
        for node, breaks in zip(it.nodes, CASES, strict=True):
            breaks(node)
        for node, words in zip(it.nodes, CASES.values(), strict=True):
            eventually(partial(fails, node, words))
        yield it


def rounds(node: LabNode) -> dict[str, int]:
    found: dict[str, int] = node.ask()["rounds"]
    return found


def busy(it: Lab) -> dict[str, object]:
    """The rounds of parts and lines of the log that were too many in a window, by the kind of failure."""
    before = [(rounds(node), len(lines(node.log))) for node in it.nodes]
    time.sleep(WINDOW)
    found: dict[str, object] = {}
    for node, kind, (earlier, logged) in zip(it.nodes, CASES, before, strict=True):
        made = {part: count - earlier[part] for part, count in rounds(node).items()}
        often = {part: count for part, count in made.items() if count > ROUNDS}
        new = lines(node.log)[logged:]
        if often or len(new) > LINES:
            found[kind.__name__] = (often, new)
    return found


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_what_fails_for_good_is_tried_now_and_then_only(failing: Lab) -> None:
    eventually(lambda: busy(failing) == {})  # the first tries are quick
