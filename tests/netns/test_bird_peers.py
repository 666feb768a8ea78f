"""Route reflectors, routers outside the cluster, passwords, and peers that are not as they should be."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from agent.modes.ipip.bird import daemon
from agent.modes.ipip.bird.control import Control
from agent.modes.ipip.bird.types import BirdError, BirdTimes, External, Peer, Secret, State, Tunnel, read_secret
from tests.netns.birds import Node, Wire, converged, mesh, monitored, needs_bird, wire
from tests.netns.node import Pod, command
from tests.support import eventually

pytestmark = needs_bird

ROUTER = """
router id 192.0.2.100;
protocol device {{ }}
protocol kernel {{ ipv4 {{ export all; }}; }}
protocol static {{ ipv4; route 0.0.0.0/0 via 192.0.2.99; route 10.244.66.0/24 via 192.0.2.99; }}
template bgp node {{ local as {asn}; {password}
  error wait time 1, 2; connect retry time 1;
  ipv4 {{ import all; export all; }}; }}
"""


@contextmanager
def router(net: Wire, nodes: list[Node], *, asn: int = 65000, password: str = "") -> Iterator[Pod]:
    """A plain BIRD as top-of-rack router at 192.0.2.100; it announces a default route and a block."""
    pod = Pod("router")
    command("ip", "link", "add", "rack", "type", "veth", "peer", "name", "eth0", "netns", pod.path)
    command("ip", "link", "set", "rack", "master", "switch", "up")
    pod.run("ip", "link", "set", "eth0", "up")
    pod.run("ip", "address", "add", "192.0.2.100/24", "dev", "eth0")
    conf, socket = net.folder / "router.conf", net.folder / "router.ctl"
    sessions = (f"protocol bgp from node {{ neighbor {node.address} as 64512; }}\n" for node in nodes)
    secret = f'password "{password}";' if password else ""
    conf.write_text(ROUTER.format(asn=asn, password=secret) + "".join(sessions))
    argv = ["nsenter", f"--net={pod.path}", "bird", "-f", "-c", str(conf), "-s", str(socket)]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        yield pod
    finally:
        process.kill()
        process.wait()


def blocks_at(pod: Pod) -> set[str]:
    return {route["dst"] for route in pod.json("route", "show", "proto", "bird") if route["dst"].startswith("10.")}


def problems(node: Node) -> str:
    return "\n".join(map(str, node.status().problems))


def test_a_router_learns_the_blocks_and_teaches_nothing(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        nodes = net.add(1, 2, 3)
        with router(net, nodes[:2]) as rack:
            top = External(IPv4Address("192.0.2.100"), 65000)
            for node in nodes:
                node.want(nodes, externals=(top,) if node is not nodes[2] else ())
            began = time.monotonic()
            eventually(lambda: {"10.244.1.0/24", "10.244.2.0/24"} < blocks_at(rack))
            print(f"a router knows the blocks after {time.monotonic() - began:.2f} s")
            converged(nodes)
            assert "10.244.3.0/24" not in blocks_at(rack), "each node announces its own blocks only"
            assert "10.244.1.0/24 via 192.0.2.1" in rack.run("ip", "route")
            assert all(node.knows(nodes) for node in nodes)
            assert not any("default" in node.ip("route") for node in nodes)
            eventually(lambda: "external 192.0.2.100" in nodes[0].established())
            nodes[0].want(nodes, externals=())
            eventually(lambda: "10.244.1.0/24" not in blocks_at(rack), 15)
            assert "10.244.2.0/24" in blocks_at(rack)


def test_wrong_as_is_told(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        nodes = net.add(1, times=BirdTimes(session=2.0))
        with router(net, nodes, asn=65001):
            nodes[0].want(externals=(External(IPv4Address("192.0.2.100"), 65000),))
            eventually(lambda: "external peer 192.0.2.100" in problems(nodes[0]))
            eventually(lambda: "Bad peer AS" in problems(nodes[0]))
            assert "give both sides the other's AS number" in problems(nodes[0])
            nodes[0].want(externals=(External(IPv4Address("192.0.2.100"), 65001),))
            eventually(lambda: nodes[0].established() and not problems(nodes[0]))


def test_passwords(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    top = External(IPv4Address("192.0.2.100"), 65000, Secret("it's \\secret #1"))
    with wire(tmp_path) as net:
        nodes = net.add(1, 2, times=BirdTimes(session=3.0))
        with router(net, nodes, password=top.password.text if top.password else "") as rack:
            mesh(nodes, externals=(top,), password=Secret("mesh"))
            eventually(lambda: {"10.244.1.0/24", "10.244.2.0/24"} <= blocks_at(rack))
            converged(nodes)
            assert nodes[0].files.conf.stat().st_mode & 0o777 == 0o600
            nodes[0].want(nodes, externals=(replace(top, password=Secret("wrong")),))
            told = eventually(lambda: problems(nodes[0]))
            assert "both sides have the same password" in told
            nodes[0].want(nodes, externals=(top,))
            eventually(lambda: not problems(nodes[0]))
            shown = caplog.text + repr(nodes[0].config) + repr(nodes[0].status()) + told
            assert "secret #1" not in shown
            assert "wrong" not in shown


def test_reflectors(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        nodes = net.add(1, 2, 3, 4, 5)
        for node in nodes[:2]:
            node.config = replace(node.config, reflector=True)
        mesh(nodes)
        print(f"five nodes by two reflectors converge in {converged(nodes):.2f} s")
        eventually(lambda: len(nodes[0].established()) == 4)
        reflectors = {nodes[0].name, nodes[1].name}
        eventually(lambda: all(client.established() == reflectors for client in nodes[2:]))
        assert nodes[2].routes()["10.244.5.0/24"] == "192.0.2.5", "next hops stay those of the nodes"
        pid = nodes[0].pid()
        nodes[0].stop()  # with one reflector gone, what it said counts less than what the other says
        os.kill(pid, signal.SIGKILL)
        nodes[3].want(nodes, blocks=())
        nodes[4].want(nodes, blocks=(nodes[3].block, nodes[4].block))
        began = time.monotonic()
        eventually(lambda: nodes[2].routes().get("10.244.4.0/24") == "192.0.2.5", 15)
        print(f"with one reflector dead, a block has moved after {time.monotonic() - began:.2f} s")
        assert set(nodes[2].routes()) == {f"10.244.{n}.0/24" for n in (1, 2, 4, 5)}


def test_a_node_that_is_down_is_told_and_its_routes_stay_a_while(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, two = nodes = net.add(1, 2, times=BirdTimes(session=2.0))
        mesh(nodes)
        converged(nodes)
        pid = two.pid()
        two.stop()
        os.kill(pid, signal.SIGKILL)
        heard = monitored(one, 8)  # over the end of the graceful restart's time: long-lived from then on
        assert "node node-2.test (192.0.2.2): is missing" in eventually(lambda: problems(one))
        eventually(lambda: "Connection refused" in problems(one))
        assert "Deleted" not in heard.communicate()[0]
        assert one.knows(nodes)
        two.restart()
        eventually(lambda: not problems(one) and one.established() == {two.name})
        assert one.knows(nodes)


def test_what_is_refused_leaves_in_force_what_was(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, _two = nodes = net.add(1, 2)
        mesh(nodes)
        converged(nodes)
        one.want(nodes, externals=(External(IPv4Address("192.0.2.100"), 64512),))
        assert "the cluster's own AS" in eventually(lambda: problems(one))
        one.want(nodes, externals=(), tunnel=Tunnel('x"; y'))
        eventually(lambda: "as an interface name" in problems(one))
        assert one.knows(nodes)
        one.want(nodes, tunnel=None)
        eventually(lambda: not problems(one))
        (one.files.folder / "bird.conf.new").write_text("password")  # of an agent that was killed over it
        one.supervisor.want(None)
        eventually(lambda: not [*one.files.folder.glob("bird.conf*")])


ONE_OF_MANY = """
router id {address};
log "/dev/null" all;
protocol device {{ }}
protocol static {{ ipv4; route {block} unreachable; }}
protocol bgp {{
  local {address} as 64512; neighbor 192.0.2.1 as 64512; strict bind on;
  connect delay time 1; connect retry time 1;
  ipv4 {{ import all; export where source = RTS_STATIC; }};
}}
"""


@contextmanager
def many(folder: Path, home: Node, addresses: list[IPv4Address], blocks: list[IPv4Network]) -> Iterator[None]:
    """A BIRD for each address, all in one namespace: they peer with one node, and not with each other."""
    inside = ("nsenter", f"--net={home.netns.path}")
    lines = "".join(f"address add {address}/16 dev eth0\n" for address in addresses)
    subprocess.run([*inside, "ip", "-batch", "-"], input=lines, text=True, check=True)
    processes = []
    try:
        for n, (address, block) in enumerate(zip(addresses, blocks, strict=True)):
            conf = folder / f"{n}.conf"
            conf.write_text(ONE_OF_MANY.format(address=address, block=block))
            processes.append(subprocess.Popen([*inside, "bird", "-f", "-c", conf, "-s", folder / f"{n}.ctl"]))
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def test_two_hundred_nodes(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, home = net.add(1, 200)
        one.ip("address", "del", "192.0.2.1/24", "dev", "eth0")
        one.ip("address", "add", "192.0.2.1/16", "dev", "eth0")
        addresses = [IPv4Address("192.0.3.0") + n for n in range(1, 200)]
        blocks = [IPv4Network(f"10.244.{n}.0/24") for n in range(2, 201)]
        with many(tmp_path, home, addresses, blocks):
            eventually(lambda: len([*tmp_path.glob("*.ctl")]) == len(blocks))
            began = time.monotonic()
            one.config = replace(
                one.config,
                peers=tuple(Peer(f"node-{n}.example", address) for n, address in enumerate(addresses)),
                direct=(IPv4Network("192.0.0.0/16"),),
            )
            one.supervisor.want(one.config)
            one.run()
            eventually(lambda: len(one.routes()) == len(blocks))
            took = time.monotonic() - began
            eventually(lambda: len(one.established()) == len(blocks))
            with Control(one.files.socket) as control:
                began = time.monotonic()
                control.protocols()
                look = time.monotonic() - began
            memory = Path(f"/proc/{one.pid()}/status").read_text().split("VmRSS:")[1].split()[0]
            print(f"200 nodes: routes after {took:.2f} s; a look {look * 1000:.0f} ms; {int(memory) >> 10} MiB")


def fake(folder: Path, script: str) -> str:
    program = folder / "fake"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_bird_3_is_refused_and_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(BirdError, match=r"is BIRD 3.1.8, .*; install BIRD 2"):
        daemon.version(fake(tmp_path, "echo BIRD version 3.1.8 >&2"))
    with pytest.raises(BirdError, match="No such file"):
        daemon.version(str(tmp_path / "none"))
    assert daemon.version(fake(tmp_path, "echo BIRD version 2.17.6 >&2")) == "2.17.6"
    assert daemon.version("bird").startswith("2.")
    with wire(tmp_path) as net:
        (one,) = net.add(1)
        one.supervisor._program = fake(tmp_path, "echo BIRD version 3.1.8 >&2")
        one.want()
        assert "is BIRD 3.1.8" in eventually(lambda: problems(one))
        assert not one.status().running


def test_a_bird_that_always_dies_is_started_ever_more_seldom(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        (one,) = net.add(1)
        count = tmp_path / "count"
        real = shutil.which("bird")
        script = f'case "$1" in -f) echo x >>{count}; exit 7;; esac; exec {real} "$@"'
        one.supervisor._program = fake(tmp_path, script)
        one.want()
        assert "ended with code 7" in eventually(lambda: problems(one))
        began = time.monotonic()
        eventually(lambda: len(count.read_text().split()) >= 3)
        time.sleep(max(0, began + 2 - time.monotonic()))
        assert len(count.read_text().split()) <= 8
        one.supervisor._program = str(real)
        eventually(lambda: one.status().running and not problems(one))


def test_another_version_is_replaced_without_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with wire(tmp_path) as net:
        one, two = nodes = net.add(1, 2)
        mesh(nodes)
        converged(nodes)
        eventually(lambda: one.established() == {two.name} and two.established() == {one.name})
        old = one.pid()
        heard = monitored(one, 4)
        monkeypatch.setattr(daemon, "version", lambda _program: "2.99")
        one.restart()
        eventually(lambda: one.status().starts == 1 and one.established() == {two.name})
        assert one.pid() != old
        assert one.knows(nodes)
        assert two.knows(nodes)
        assert "Deleted" not in heard.communicate()[0]


def test_secrets_are_read_from_files_that_others_cannot_read(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("tell no one\n")
    file.chmod(0o644)
    with pytest.raises(BirdError, match="may be read by others; chmod 600"):
        read_secret(file)
    file.chmod(0o600)
    assert read_secret(file) == Secret("tell no one")
    for text in ("", "a" * 81, 'quo"te', "new\nline", "ümlaut"):
        file.write_text(text)
        with pytest.raises(BirdError) as told:
            read_secret(file)
        assert text not in str(told.value) or not text
    with pytest.raises(BirdError, match="No such file"):
        read_secret(tmp_path / "none")


def test_states_are_known() -> None:
    assert {state.value for state in State} >= {"Idle", "Connect", "Active", "Established"}
