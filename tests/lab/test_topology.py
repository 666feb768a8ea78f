"""The lab by itself, without agents: nodes on a switch, each a machine of its own, and nothing left behind."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.model.marks import ROUTE_PROTOCOL
from tests.lab import ping, registry, space
from tests.lab.lab import Lab, LabError, LabNode, lab
from tests.lab.registry import LABS
from tests.lab.segment import GATEWAY, OUTSIDE
from tests.lab.space import REPO
from tests.lab.state import difference, net_state
from tests.support import eventually
from tests.timing import in_time


@pytest.fixture
def two() -> Iterator[Lab]:
    with lab(2, agents=False) as it:
        yield it


def reaches(source: LabNode, *addresses: str) -> list[bool]:
    targets = {address: ipaddress.ip_address(address) for address in addresses}
    times = ping.round_trips({"it": source.space.netns}, targets, within=1.5)
    return [times["it", address] is not None for address in addresses]


def machine() -> dict[str, object]:
    """Return what a lab could leave on the machine itself."""
    return {
        "links": subprocess.run(("ip", "-br", "link"), capture_output=True, text=True, check=True).stdout,
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "named": sorted(path.name for path in Path("/run/netns").glob("*")),
        "hostname": os.uname().nodename,
    }


def processes_of(it: Lab) -> list[int]:
    return space.processes_in([one.pid for one in (it.switch, it.outside, *(node.space for node in it.nodes))])


def gone(lab_id: str) -> bool:
    return not (LABS / lab_id).exists() and not (LABS / f"{lab_id}.json").exists()


def test_nodes_reach_each_other_and_the_outside_but_no_strangers(two: Lab) -> None:
    for node, other in (two.nodes, reversed(two.nodes)):
        assert reaches(node, other.address, GATEWAY, OUTSIDE, "172.18.99.99") == [True, True, True, False]


def test_the_outside_has_no_route_to_pods(two: Lab) -> None:
    one = two.nodes[0]
    one.space.batch(["address add 10.244.1.1/24 dev lo"])
    assert one.space.exec("ping", "-c1", "-W1", "-I", one.address, OUTSIDE, check=False).returncode == 0
    assert one.space.exec("ping", "-c1", "-W1", "-I", "10.244.1.1", OUTSIDE, check=False).returncode == 1


def test_echoes_of_both_families_are_told_apart(two: Lab) -> None:
    one, other = two.nodes
    for node, number in ((one, 1), (other, 2)):
        node.space.batch([f"address add fd00::{number}/64 dev eth0 nodad"])
    names = {"v4": other.address, "v6": "fd00::2", "self": "::1", "no v6": "fd00::3", "no route": "2001:db8::1"}
    targets = {name: ipaddress.ip_address(address) for name, address in names.items()}

    def turn(_number: int) -> bool:
        times = ping.round_trips({"one": one.space.netns}, targets, within=0.3)
        answered = {name for (_, name), ms in times.items() if ms is not None}
        assert answered <= {"v4", "v6", "self"}
        return len(answered) == 3 and all(0 < ms < 100 for ms in times.values() if ms)

    in_time(turn)


def test_a_node_is_a_machine_of_its_own(two: Lab) -> None:
    one, other = two.nodes
    one.path("/run/here").write_text("x")
    one.path("/etc/here").write_text("x")
    one.path("/usr/here").write_text("x")
    for path in ("/run/here", "/etc/here", "/usr/here"):
        assert not other.path(path).exists()
        assert not Path(path).exists()
        assert one.space.exec("cat", path).stdout == "x"
    assert [node.space.exec("hostname").stdout.strip() for node in two.nodes] == ["node1", "node2"]
    # a kernel with ipip or bonding has these in every namespace
    devices = set(one.space.exec("ls", "/sys/class/net").stdout.split()) - {"tunl0", "bonding_masters"}
    assert devices == {"eth0", "lo"}
    (two.datastore / "shared").write_text("x")
    assert other.path(str(two.datastore / "shared")).read_text() == "x"


def test_ip_netns_works_inside_and_stays_inside(two: Lab) -> None:
    one = two.nodes[0]
    before, outside = net_state(one), machine()
    one.add_netns("pod")
    assert one.space.exec("nsenter", "--net=/run/netns/pod", "ls", "/sys/class/net", check=False).returncode == 0
    assert one.space.exec("ip", "-n", "pod", "-br", "link").stdout.split()[:2] == ["lo", "DOWN"]
    assert difference(before, net_state(one)) == ["+ files: /run/netns/pod"]
    one.space.exec("ip", "netns", "delete", "pod")
    assert difference(before, net_state(one)) == []
    assert machine() == outside


def test_state_tells_what_came_and_what_went(two: Lab) -> None:
    one = two.nodes[0]
    before = net_state(one, neighbours=True)
    one.space.batch([
        "link add br7 type bridge",
        "link set br7 alias mine up",
        "address add 192.0.2.1/24 dev br7",
        f"route add 198.51.100.0/24 via 192.0.2.2 table 77 proto {ROUTE_PROTOCOL}",
        "route del default",
        "neighbour add 192.0.2.9 lladdr 02:00:00:00:00:01 dev br7",
    ])  # fmt: skip
    one.space.exec("nft", "add table inet mine")
    lines = difference(before, net_state(one, neighbours=True))
    for words in (
        "+ links: bridge br7 mtu 1500 mine",
        "+ addresses: br7 192.0.2.1/24",
        f"dst 198.51.100.0/24 gateway 192.0.2.2 dev br7 table 77 protocol {ROUTE_PROTOCOL}",
        f"dst default gateway {GATEWAY} dev eth0",
        '+ nft: {"table": {"family": "inet", "name": "mine"}}',
        "+ neighbours: 192.0.2.9 br7 02:00:00:00:00:01",
    ):
        assert any(words in line for line in lines), (words, lines)
    assert [line[:9] for line in lines if line.startswith("-")] == ["- routes:"]
    assert difference({"x": ["a", "a"]}, {"x": ["a"], "y": ["b"]}) == ["+ y: b", "- x: a"]


def test_a_node_that_gets_another_address_is_reached_there(two: Lab) -> None:
    one, other = two.nodes
    old = other.address
    two.readdress(other, "172.18.7.7")
    assert reaches(one, "172.18.7.7", old) == [True, False]
    assert reaches(other, OUTSIDE) == [True]
    assert "172.18.7.7" in (two.datastore / f"node-{other.name}.yaml").read_text()


def test_two_labs_know_nothing_of_each_other_and_leave_nothing() -> None:
    before = machine()
    with lab(2, agents=False) as first:
        with lab(2, agents=False) as second:
            assert first.nodes[0].address == second.nodes[0].address
            first.nodes[1].space.batch(["link set eth0 down"])
            assert reaches(second.nodes[0], second.nodes[1].address) == [True]
            assert reaches(first.nodes[0], first.nodes[1].address) == [False]
            assert {first.id, second.id} <= {one["id"] for one in registry.labs()}
            second.nodes[0].space.exec("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &")
            pids = processes_of(second)
            assert len(pids) == 5
        assert gone(second.id)
        assert not any(map(space.start_time, pids)), "what ran in its nodes has ended too"
        assert reaches(first.nodes[0], OUTSIDE) == [True]
    assert gone(first.id)
    assert machine() == before


CREATOR = """
import sys, time
from tests.lab.lab import Lab
it = Lab().up(2, agents=False)
it.nodes[0].space.exec("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &")
if sys.argv[1] == "keep":
    it.keep()
print(it.id, *(one.pid for one in (it.switch, it.outside, *(node.space for node in it.nodes))), flush=True)
time.sleep(1000)
"""


def _killed_creator(what: str) -> tuple[str, list[int]]:
    """The id of a lab whose creator was killed, and the processes that were in it."""
    creator = subprocess.Popen(
        (sys.executable, "-c", CREATOR, what), cwd=REPO, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )  # fmt: skip
    with creator:
        assert creator.stdout
        lab_id, *holders = creator.stdout.readline().split()
        pids = space.processes_in([int(pid) for pid in holders])
        creator.send_signal(signal.SIGKILL)
    return lab_id, pids


def test_a_lab_ends_with_its_creator_even_by_kill_9() -> None:
    lab_id, pids = _killed_creator("don't keep")
    assert len(pids) == 5
    eventually(lambda: not any(map(space.start_time, pids)))
    eventually(lambda: gone(lab_id))


def test_a_lab_of_another_pid_namespace_is_no_leftover(two: Lab) -> None:
    purge = "import os; from tests.lab import registry; registry.purge(); print(os.getpid())"
    done = subprocess.run(
        ("unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", purge),
        cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "1\n"
    assert two.id in {one["id"] for one in registry.labs()}
    assert two.nodes[0].space.exec("hostname").stdout == "node1\n"


def naming(lab_id: str) -> list[str]:
    """The command lines of processes that would end a lab."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            lines.append(path.read_text())
    return [line for line in lines if lab_id in line.split("\0")]


def test_a_kept_lab_outlives_its_creator_until_it_is_ended() -> None:
    lab_id, pids = _killed_creator("keep")
    try:
        eventually(lambda: naming(lab_id) == [])
        registry.purge()
        assert all(map(space.start_time, pids))
        listed = subprocess.run(
            (sys.executable, "-m", "tests.lab", "list"), cwd=REPO, capture_output=True, text=True, check=True
        )
        assert f"{lab_id}  2 nodes  kept" in listed.stdout.splitlines()
    finally:
        done = subprocess.run((sys.executable, "-m", "tests.lab", "down", lab_id), cwd=REPO, check=False)
    assert done.returncode == 0
    assert not any(map(space.start_time, pids))
    assert gone(lab_id)
    again = subprocess.run(
        (sys.executable, "-m", "tests.lab", "down", lab_id), cwd=REPO, capture_output=True, text=True, check=False
    )
    assert (again.returncode, f"no lab {lab_id}" in again.stderr) == (2, True)


def test_a_pid_that_was_used_again_is_not_ended() -> None:
    bystander = subprocess.Popen(("sleep", "100"))
    try:
        it = Lab()
        path = LABS / f"{it.id}.json"
        began = space.start_time(it.switch.pid)
        path.write_text(path.read_text().replace(f'[{it.switch.pid}, "{began}"]', f'[{bystander.pid}, "1"]'))
        registry.down(it.id)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        space.kill_all([it.switch.pid])
        it.down()


def test_a_holder_that_is_not_in_its_namespaces_yet_takes_nobody_with_it() -> None:
    bystander = subprocess.Popen(("sleep", "100"))
    try:
        assert space.processes_in([bystander.pid]) == [bystander.pid]
    finally:
        bystander.kill()
        bystander.wait()


def test_a_failure_on_the_way_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine()
    monkeypatch.setattr(space, "SETUP", space.SETUP.replace("pivot_root", 'test "$NAME" != node2; pivot_root'))
    with pytest.raises(space.SpaceError, match="node2"), lab(3, agents=False) as it:
        pytest.fail(f"{it.id} is up")
    assert machine() == before
    assert not [one for one in registry.labs() if one["creator"][0] == os.getpid()]


def test_an_interrupt_before_anybody_has_the_lab_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Lab, "plug", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Lab()
    assert machine() == before
    assert not [one for one in registry.labs() if one["creator"][0] == os.getpid()]


def test_how_many_nodes_there_may_be_is_told() -> None:
    with pytest.raises(LabError, match="251 nodes: 1 to 250"), lab(251, agents=False):
        pytest.fail("it is up")


@pytest.mark.parametrize("nodes", [50, 200])
@pytest.mark.alone
def test_hundreds_of_nodes_are_quick(nodes: int) -> None:
    def turn(_number: int) -> bool:
        began = time.monotonic()
        with lab(nodes, agents=False) as it:
            up = time.monotonic() - began
            assert reaches(it.nodes[0], it.nodes[-1].address, OUTSIDE) == [True, True]
            began = time.monotonic()
        down = time.monotonic() - began
        print(f"{nodes} nodes: up in {up:.2f} s ({1000 * up / nodes:.0f} ms a node), down in {down:.2f} s")
        return up / nodes < 0.05

    in_time(turn, turns=2)
