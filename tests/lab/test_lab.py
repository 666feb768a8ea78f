"""Whole agents on nodes of the lab: from a manifest to a ping, and through every kind of trouble."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.model.marks import ROUTE_PROTOCOL
from tests.lab import gotools, registry, space
from tests.lab.__main__ import main as lab_main
from tests.lab.lab import SEED_CONF, Lab, LabNode, lab
from tests.lab.registry import LABS
from tests.lab.segment import OUTSIDE
from tests.lab.space import PYTHON, REPO
from tests.lab.state import difference, net_state
from tests.support import eventually, seconds_until
from tests.timing import in_time


@pytest.fixture
def three() -> Iterator[Lab]:
    with lab(3) as it:
        yield it


@pytest.fixture
def node() -> Iterator[LabNode]:
    """A node for what concerns one alone."""
    with lab(1) as it:
        yield it.nodes[0]


def routes(node: LabNode) -> list[str]:
    return sorted(
        line.strip()
        for line in node.space.exec("ip", "route", "show", "proto", str(ROUTE_PROTOCOL)).stdout.splitlines()
    )


def test_pods_keep_their_address_among_themselves_and_lose_it_outside(three: Lab) -> None:
    one, two, _ = three.nodes
    a, b = one.add_pod("a"), two.add_pod("b")
    script = "import socket; s=socket.socket(2,2); s.bind(('',9)); print(flush=True); print(s.recvfrom(9)[1][0])"

    def sender_of(listener: list[str], target: str) -> str:
        server = subprocess.Popen([*listener, *PYTHON, script], stdout=subprocess.PIPE, text=True)
        assert server.stdout
        server.stdout.readline()
        a.exec(*PYTHON, f"import socket; socket.socket(2,2).sendto(b'x',('{target}',9))")
        out, _ = server.communicate(timeout=5)
        return out.strip()

    assert sender_of(b.argv(), b.address) == a.address
    assert sender_of(two.space.argv(), two.address) == a.address
    assert sender_of(three.outside.argv(), OUTSIDE) == one.address


Walk = tuple[Callable[[LabNode], str], Callable[[LabNode], object]]
TEST_NETNS = "/run/netns/test.net.1"
TOOL_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CNI_PATH": "/opt/cni/bin"}


@pytest.fixture
def cnitool() -> str:
    try:
        return str(gotools.cnitool())
    except gotools.NoGoError as error:
        pytest.skip(f"cnitool can't be built: {error}")


@pytest.fixture(params=["cnitool", "own runner"])
def walk(request: pytest.FixtureRequest) -> Walk:
    """The two calls of the walk: add a pod on a node and return its address; delete it."""
    if request.param == "own runner":
        return (
            lambda node: str(node.runner.add(node.conf(), "walk", TEST_NETNS)["ips"][0]["address"]),
            lambda node: node.runner.delete(node.conf(), "walk", TEST_NETNS),
        )
    tool = request.getfixturevalue("cnitool")

    def run(node: LabNode, verb: str) -> str:
        return node.space.exec(tool, verb, "testcni", TEST_NETNS, env=TOOL_ENV).stdout

    return (lambda node: str(json.loads(run(node, "add"))["ips"][0]["address"]), lambda node: run(node, "del"))


def test_the_seeds_walk_without_kubernetes(walk: Walk) -> None:
    add, delete = walk
    with lab(2, conf=None) as it:
        # what an agent writes last when it starts
        written = ("reservations.json", "nodes.json")
        it.each(lambda node: eventually(lambda: all(node.path(f"/run/testcni/{n}").exists() for n in written)))
        before = it.each(net_state)
        for node in it.nodes:
            node.path("/etc/cni/net.d/10-testcni.conf").write_text(SEED_CONF)
            node.space.exec("ip", "netns", "add", "test.net.1")
        addresses = [add(node) for node in it.nodes]
        assert addresses == ["10.244.1.2/24", "10.244.2.2/24"]
        for node, target in zip(it.nodes, reversed(addresses), strict=True):
            for address in (target.removesuffix("/24"), OUTSIDE):
                node.space.exec("ip", "netns", "exec", "test.net.1", "ping", "-c1", "-W2", address)
        for node in it.nodes:
            delete(node)
            node.space.exec("ip", "netns", "delete", "test.net.1")
            node.path("/etc/cni/net.d/10-testcni.conf").unlink()
        for node, state in zip(it.nodes, before, strict=True):
            eventually(lambda node=node, state=state: _same(state, net_state(node)))


def _same(before: dict[str, list[str]], after: dict[str, list[str]]) -> bool:
    return [line for line in difference(before, after) if "/var/lib/cni" not in line] == []


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_conformance_by_libcnis_cnitool(node: LabNode, cnitool: str, version: str) -> None:
    conf = {"cniVersion": version, "name": "testcni", "plugins": [json.loads(SEED_CONF)]}
    node.path("/etc/cni/net.d/10-testcni.conf").unlink()
    node.path("/etc/cni/net.d/10-testcni.conflist").write_text(json.dumps(conf))
    node.add_netns("c1")
    before = net_state(node)

    def run(verb: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return node.space.exec(cnitool, verb, "testcni", "/run/netns/c1", env=TOOL_ENV, check=check)

    assert json.loads(run("add").stdout)["cniVersion"] == version
    run("check")
    node.space.exec("ip", "netns", "exec", "c1", "ip", "address", "flush", "dev", "eth0")
    assert "lacks address" in (broken := run("check", check=False)).stderr + broken.stdout
    run("del")
    run("del")
    if version == "1.1.0":
        run("status")
        run("add")
        run("gc")
    else:
        run("add")
        run("del")
    after = [line for line in difference(before, net_state(node)) if "/var/lib/cni" not in line]
    assert after == []


@pytest.mark.alone
def test_nodes_come_change_and_go_within_a_second(three: Lab) -> None:
    one, two, three_ = three.nodes
    assert routes(one) == [
        f"{two.block} via {two.address} dev eth0",
        f"{three_.block} via {three_.address} dev eth0",
    ]
    bounds = {"leaves": 1.0, "joins": 1.0, "changes": 1.0, "is repaired": 2.0}

    def turn(number: int) -> bool:
        took = coming_and_going(three, f"10.244.{77 + number}.0/24")
        print("seconds until a node", ", ".join(f"{what}: {seconds:.3f}" for what, seconds in took.items()))
        return all(took[what] <= bounds[what] for what in bounds)

    in_time(turn)


def coming_and_going(it: Lab, block: str) -> dict[str, float]:
    """Seconds until the first node has done what becomes of the second, and has back a route to the third."""
    one, two, third = it.nodes
    it.delete_node(two)
    leaves = seconds_until(lambda: len(routes(one)) == 1)
    it.put_node(two)
    joins = seconds_until(lambda: len(routes(one)) == 2)
    two.block, old = block, two.block
    it.put_node(two)  # replaced under the same name
    changes = seconds_until(lambda: any(line.startswith(block) for line in routes(one)))
    eventually(lambda: not any(line.startswith(old) for line in routes(one)))
    one.space.exec("ip", "route", "del", third.block)
    repaired = seconds_until(lambda: len(routes(one)) == 2)
    return {"leaves": leaves, "joins": joins, "changes": changes, "is repaired": repaired}


def test_a_bad_manifest_is_told_with_its_line_and_takes_nothing_away(three: Lab) -> None:
    one, two, _ = three.nodes
    path = three.datastore / f"node-{two.name}.yaml"
    path.write_text(path.read_text().replace(two.block, "10.244.2.7/24"))
    eventually(lambda: "has host bits set" in str(one.ask()["problems"]))
    where = [p["where"] for p in one.ask()["problems"]]
    assert f"{path}:8" in where
    assert f"{two.block} via {two.address} dev eth0" in routes(one)
    three.put_node(two)
    eventually(lambda: one.ask()["problems"] == [])


def test_an_agent_that_is_restarted_changes_nothing(three: Lab) -> None:
    one, two, _ = three.nodes
    a, b = one.add_pod("a"), two.add_pod("b")
    before = net_state(one)
    ping = subprocess.Popen(
        a.argv("ping", "-q", "-i", "0.002", "-c", "1000", b.address), stdout=subprocess.PIPE, text=True
    )
    assert one.stop_agent() == 0
    after_stop = [line for line in difference(before, net_state(one)) if "agent.sock" not in line]
    assert after_stop == []
    one.start_agent()
    one.wait_ready()
    out, _ = ping.communicate(timeout=30)
    assert " 0% packet loss" in out
    eventually(lambda: difference(before, net_state(one)) == [])  # files may be half written


def test_an_add_waits_for_the_agent_and_a_del_does_not(node: LabNode) -> None:
    gone = node.add_pod("gone")
    node.stop_agent(signal.SIGKILL)
    began = time.monotonic()
    node.delete_pod(gone)
    assert time.monotonic() - began < 10, "it does not wait for the agent, for whom an ADD would 20 s"
    journal = list(node.path("/var/lib/testcni/deletes").iterdir())
    assert len(journal) == 1
    assert journal[0].stat().st_mode & 0o777 == 0o600
    threading.Timer(0.7, node.start_agent).start()
    pod = node.add_pod("waits")
    assert pod.address == "10.244.1.3", "the journaled DEL came first, and its address cools"
    assert list(node.path("/var/lib/testcni/deletes").iterdir()) == []
    assert [path.name for path in node.path("/run/testcni/attachments").iterdir()] == [
        f"{pod.result['interfaces'][1]['name']}.json"
    ]


@pytest.mark.timeout(300)
def test_fifty_agents_claim_fifty_blocks() -> None:
    with lab(50, pod_cidrs=False, conf=None) as it:
        for node in it.nodes:
            node.path("/etc/cni/net.d/10-testcni.conf").write_text(SEED_CONF)
        it.each(lambda node: node.wait_ready(90))
        claimed = list(it.datastore.glob("ipblock-*.yaml"))
        owners = [line for path in claimed for line in path.read_text().splitlines() if "node:" in line]
        assert len(claimed) == len(set(owners)) == 50
        bridges = {
            node.space.exec("ip", "-br", "-4", "address", "show", "testcni0").stdout.split()[2]
            for node in it.nodes
        }
        assert len(bridges) == 50
        eventually(lambda: all(len(routes(node)) == 49 for node in it.nodes))
        assert not list(it.datastore.glob(".new-*")), "nothing half-written stays"


def test_a_claim_survives_the_agent_and_a_full_pool_is_told() -> None:
    with lab(2, pod_cidrs=False, agents=False) as it:
        it.put("pool", {
            "apiVersion": "testcni.io/v1", "kind": "IPPool", "metadata": {"name": "pods"},
            "spec": {"cidr": "10.244.0.0/24", "blockSize": 24},
        })  # fmt: skip
        one, two = it.nodes
        one.start_agent()
        one.wait_ready()
        two.start_agent()
        eventually(two.path("/run/testcni/agent.sock").exists)
        eventually(lambda: "no block is left in pods (10.244.0.0/24)" in str(two.problems()))
        one.stop_agent()
        one.start_agent()
        one.wait_ready()
        assert len(list(it.datastore.glob("ipblock-*.yaml"))) == 1


def test_only_one_agent_serves_on_a_run_dir(node: LabNode) -> None:
    argv = (sys.executable, "-m", "agent", "--node", "x", "--datastore", f"dir:{node.lab.datastore}")
    done = node.space.exec(*argv, check=False)
    assert (done.returncode, "another agent serves" in done.stderr) == (3, True)


def test_wrong_options_are_told() -> None:
    for argv, words in (
        (["--datastore", "etcd:x"], "'etcd:x' is no datastore"),
        (["--datastore", "dir:/x", "--resync", "soon"], "'soon' must be a number of seconds"),
        (["--datastore", "dir:/x", "--run-dir", "relative"], "must be an absolute path"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "agent", *argv], capture_output=True, text=True, check=False, cwd=REPO
        )
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr


def test_the_lab_leaves_nothing_even_when_its_creator_is_killed() -> None:
    creator = subprocess.Popen(
        [sys.executable, "-m", "tests.lab", "demo", "--nodes", "2", "--pods", "26"],
        cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    eventually(lambda: [len(one["holders"]) for one in _labs_of(creator)] == [4])
    mine = _labs_of(creator)[0]
    creator.kill()
    creator.wait()
    with Lab():  # the next lab clears up, unless the lab's own warden was quicker
        assert _labs_of(creator) == []
    assert not (LABS / mine["id"]).exists()
    assert not any(space.start_time(pid) == began for pid, began in mine["holders"])


def test_what_is_started_while_the_lab_ends_ends_too() -> None:
    with lab(1, agents=False) as it:
        node = it.nodes[0].space
        mount = (Path("/proc") / str(node.pid) / "ns/mnt").readlink()

        def inside() -> list[Path]:
            return [p for p in Path("/proc").glob("[0-9]*") if space._mount_namespace(int(p.name)) == mount]

        forks = "while sleep 0.002; do setsid sleep 1000 & done"
        for _ in range(4):
            subprocess.Popen(node.argv("sh", "-c", forks))
        eventually(lambda: len(inside()) > 20)
    assert inside() == []


def test_the_demo_ends_well_and_cleans_up_after_ctrl_c() -> None:
    demo = [sys.executable, "-m", "tests.lab", "demo", "--nodes", "2"]
    done = subprocess.run([*demo, "-o", "json"], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 4 * 5
    # kept only once it is up: an interrupted one is not
    for signal_number, more in ((signal.SIGINT, []), (signal.SIGTERM, ["--keep"])):
        process = subprocess.Popen(
            [*demo, "--pods", "20", *more], cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        eventually(lambda: [len(one["holders"]) for one in _labs_of(process)] == [4])  # noqa: B023 - called at once
        mine = _labs_of(process)[0]["id"]
        process.send_signal(signal_number)
        assert process.wait(60) == 130
        assert _labs_of(process) == []
        assert not (LABS / mine).exists()


def test_a_demo_that_fails_names_the_pairs_and_what_the_agents_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_pod = LabNode.add_pod

    def add_and_break(node: LabNode, name: str) -> None:
        add_pod(node, name)
        if node.number == 2:
            node.lab.delete_node(node)  # its Node object: the routes to its pods go, and it has no block any more
            eventually(lambda: routes(node.lab.nodes[0]) == [])
            eventually(node.problems)

    monkeypatch.setattr(LabNode, "add_pod", add_and_break)
    monkeypatch.setattr(sys, "argv", ["lab", "demo", "--nodes", "2"])
    assert lab_main() == 1
    told = capsys.readouterr().err
    assert "not reached: pod1a (node1) → pod2a (node2)" in told
    assert "not reached: pod1a (node1) → node1" not in told
    assert "has no Node object" in told
    assert "every pair reached" not in told


def _labs_of(creator: subprocess.Popen[Any]) -> list[dict[str, Any]]:
    return [one for one in registry.labs() if one["creator"][0] == creator.pid]
