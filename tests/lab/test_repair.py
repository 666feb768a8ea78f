"""The agent restores what others remove on a node while it runs, or ends, to get it at its next start."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.lab.lab import CONF_FILE, PLUGIN, SEED_CONF, Lab, LabNode, Pod, lab
from tests.lab.space import PYTHON
from tests.support import eventually

RUN = "/run/testcni"
CONFLIST = {"cniVersion": "1.0.0", "name": "testcni", "plugins": [json.loads(SEED_CONF)]}
INSTALLS = ("--conflist", "/opt/testcni/conflist")
CONFLIST_FILE = "/etc/cni/net.d/05-testcni.conflist"
HOST = {
    "--conf-dir": "/etc/cni/net.d",
    "--bin-dir": "/opt/cni/bin",
    "--state-dir": "/var/lib/testcni",
    "--run-dir": RUN,
}


@pytest.fixture(scope="module")
def node() -> Iterator[LabNode]:
    """A node whose agent installs what it needs."""
    with lab(1, agents=False) as it:
        (made,) = it.nodes
        bundle(it)
        made.start_agent("--resync", "1", *INSTALLS)
        eventually(made.path(CONFLIST_FILE).exists)
        made.wait_ready()
        yield made


@pytest.fixture
def pod(node: LabNode) -> Iterator[Pod]:
    made = node.add_pod("old")
    yield made
    node.delete_pod(made)


def bundle(it: Lab) -> None:
    for node in it.nodes:
        node.path("/opt/testcni/bin").mkdir(parents=True)
        (node.path("/opt/testcni/bin") / "testcni").write_bytes(PLUGIN.read_bytes())
        node.path("/opt/testcni/conflist").write_text(json.dumps(CONFLIST))
        node.path(CONF_FILE).unlink()


def serves(node: LabNode) -> None:
    """A pod comes and goes."""
    node.delete_pod(node.add_pod("new"))


@pytest.mark.parametrize(
    "what",
    ["agent.sock", "agent.lock", "prepared.json", "attachments", "", CONFLIST_FILE, "/opt/cni/bin/testcni"],
)
def test_what_is_removed_on_a_node_is_there_again(node: LabNode, pod: Pod, what: str) -> None:
    path = node.path(what if what.startswith("/") else f"{RUN}/{what}")
    before = {p.name: p.read_bytes() for p in node.path(f"{RUN}/attachments").iterdir()}
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    for needed in (path, *(node.path(f"{RUN}/{name}") for name in ("agent.sock", "agent.lock", "prepared.json"))):
        eventually(needed.exists)
    files = node.path(f"{RUN}/attachments")
    eventually(lambda: files.exists() and {p.name: p.read_bytes() for p in files.iterdir()} == before)
    serves(node)
    assert pod.address in node.space.exec("nsenter", f"--net={pod.netns}", "ip", "-4", "address").stdout
    second = node.space.exec(*PYTHON, f"import fcntl; fcntl.flock(open('{RUN}/agent.lock'), 6)", check=False)
    assert "BlockingIOError" in second.stderr, "a second agent could start"
    assert node.problems() == []


def test_a_second_agent_that_took_the_lock_meanwhile_ends_the_first(node: LabNode) -> None:
    """Both would give addresses of the same blocks."""
    path = f"{RUN}/agent.lock"
    take = (
        f"import fcntl, os, sys; os.unlink('{path}'); f = open('{path}', 'w'); fcntl.flock(f, 6); sys.stdin.read()"
    )
    argv = node.space.argv(*PYTHON, take)
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as other:
        assert node.wait_agent() == 1
        assert other.stdin
        other.stdin.write(b"\n")
        other.stdin.close()
    assert "another agent has the lock" in node.log.read_text()
    node.start_agent("--resync", "1", *INSTALLS)
    node.wait_ready()


@pytest.mark.parametrize("option", HOST)
def test_a_folder_that_is_made_again_behind_its_mount_ends_the_agent_which_then_has_the_new_one(
    node: LabNode, option: str
) -> None:
    assert node.stop_agent() == 0
    inside, host = HOST[option], f"/host{HOST[option]}"
    mount = f"mkdir -p {host} && mount --bind {host} {inside}"
    node.space.exec("sh", "-c", f"mkdir -p {host} && cp -a {inside}/. {host}/ && mount --bind {host} {inside}")
    node.start_agent("--resync", "1", *INSTALLS)
    node.wait_ready()
    eventually(
        lambda: node.space.exec("rm", "-rf", host, check=False).returncode == 0
    )  # the agent repairs meanwhile
    node.path(host).mkdir()
    assert node.wait_agent() == 1
    assert f"{inside} ({option}) was removed on the host" in node.log.read_text()
    node.space.exec("sh", "-c", f"umount {inside} && {mount}")  # what the runtime does for a new container
    node.start_agent("--resync", "1", *INSTALLS)
    eventually(node.path(CONFLIST_FILE).exists)
    node.wait_ready()
    serves(node)
    node.stop_agent()
    node.space.exec("umount", inside)
    node.start_agent("--resync", "1", *INSTALLS)
    node.wait_ready()
