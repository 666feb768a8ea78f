"""Real BIRDs on nodes of namespaces: blocks travel, and routes outlive BIRD and the agent."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from agent.modes.ipip.bird import render
from agent.modes.ipip.bird.control import Control
from agent.modes.ipip.bird.types import BirdTimes, State, Tunnel
from tests.lab.space import REPO
from tests.netns.birds import POOLS, converged, flow, lost, mesh, monitored, needs_bird, start_agent, wire
from tests.support import eventually

pytestmark = needs_bird


def test_two_nodes(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, two = nodes = net.add(1, 2)
        mesh(nodes)
        print(f"two nodes converge in {converged(nodes):.2f} s")
        assert one.routes("metric", "84") == {"10.244.2.0/24": "192.0.2.2"}
        assert "unreachable 10.244.1.0/24 proto bird metric 84" in one.ip("route")
        assert "src 10.244.1.2" in one.ip("route", "get", "10.244.2.2")
        assert one.netns.reaches("10.244.2.2")
        eventually(lambda: one.established() == {two.name})
        # a look at sessions that are well comes every 5 s
        eventually(lambda: [(x.imported, x.exported) for x in one.status().sessions] == [(1, 1)])
        eventually(lambda: one.status().kernel_routes == 2)
        assert one.status().by_state()[State.ESTABLISHED] == 1
        assert not one.status().problems
        with Control(one.files.socket) as control:
            assert control.route_count() == 2
            assert not control.is_busy()
            assert control.ask("configure").text == "Access denied"
        with Control(one.files.socket, change=True) as control:
            control.configure()


def test_the_images_birdc_knows_the_agents_socket(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, two = nodes = net.add(1, 2)
        mesh(nodes)
        converged(nodes)
        script = str(REPO / "bird/birdc")
        (tmp_path / "run").mkdir()
        (tmp_path / "run/bird").symlink_to(one.folder)
        env = {**os.environ, "TESTCNI_RUN_DIR": str(tmp_path / "run")}
        said = subprocess.run(
            [script, "-r", "show", "protocols"], env=env, capture_output=True, text=True, check=True
        )
        assert "node_2_test" in said.stdout
        other = [script, "-s", str(two.files.socket), "-r", "show", "protocols"]
        assert "node_1_test" in subprocess.run(other, env=env, capture_output=True, text=True, check=True).stdout


def test_a_third_node_joins_and_one_leaves(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, two, three = nodes = net.add(1, 2, 3)
        mesh([one, two])
        converged([one, two])
        pids = [one.pid(), two.pid()]
        heard = monitored(one, 4)
        mesh(nodes)
        print(f"a third node is known everywhere after {converged(nodes):.2f} s")
        mesh([one, three])
        print(f"a node that left is forgotten after {converged([one, three]):.2f} s")
        assert "Deleted 10.244.3.0" not in heard.communicate()[0]
        assert [one.pid(), two.pid()] == pids, "nobody was restarted"


def test_a_node_gets_another_address_and_another_block(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, two = nodes = net.add(1, 2)
        mesh(nodes)
        converged(nodes)
        two.ip("address", "flush", "dev", "eth0")
        two.ip("address", "add", "192.0.2.22/24", "dev", "eth0")
        two.address = IPv4Address("192.0.2.22")
        two.config = replace(two.config, address=two.address)
        mesh(nodes)
        print(f"another address takes {converged(nodes):.2f} s")
        two.block = IPv4Network("10.244.222.0/24")
        two.want(nodes, blocks=(two.block,), source=None)
        eventually(lambda: one.routes() == {"10.244.222.0/24": "192.0.2.22"})


def test_killed_bird_loses_no_packet(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, two = nodes = net.add(1, 2)
        mesh(nodes)
        converged(nodes)
        eventually(lambda: one.established() == {two.name})
        listening = [monitored(node, 6) for node in nodes]
        flows = [flow(one, two, 5), flow(two, one, 5)]
        time.sleep(0.5)
        old = one.pid()
        os.kill(old, signal.SIGKILL)
        began = time.monotonic()
        eventually(lambda: one.status().starts == 2 and one.established() == {two.name})
        print(f"killed BIRD: sessions again after {time.monotonic() - began:.2f} s")
        assert one.pid() != old
        assert "-R" in Path(f"/proc/{one.pid()}/cmdline").read_text().split("\0"), "it recovers what it knew"
        assert [lost(each) for each in flows] == [0, 0]
        assert [each.communicate()[0].count("Deleted") for each in listening] == [0, 0]
        assert one.knows(nodes)
        assert two.knows(nodes)


def test_all_birds_and_agents_killed_at_once_lose_no_packet(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, two, three = nodes = net.add(1, 2, 3)
        mesh(nodes)
        converged(nodes)
        eventually(lambda: all(len(node.established()) == 2 for node in nodes))
        listening = [monitored(node, 8) for node in nodes]
        flows = [flow(one, two, 6), flow(two, three, 6), flow(three, one, 6)]
        time.sleep(0.5)
        pids = [node.pid() for node in nodes]
        for node in nodes:
            node.stop()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for node in nodes:
            node.restart()
        began = time.monotonic()
        eventually(lambda: all(len(node.established()) == 2 for node in nodes))
        print(f"all killed: sessions again after {time.monotonic() - began:.2f} s")
        assert [lost(each) for each in flows] == [0, 0, 0]
        assert [each.communicate()[0].count("Deleted") for each in listening] == [0, 0, 0]
        assert all(node.knows(nodes) for node in nodes)


def test_killed_agent_is_replaced_under_the_same_bird(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, two, three = nodes = net.add(1, 2, 3)
        one.config = replace(one.config, peers=(two.peer,))
        agent = start_agent(one)
        two.want([one])
        converged([one, two])
        pid = one.pid()
        heard = monitored(one, 5)
        agent.kill()
        agent.wait()
        assert one.knows([one, two])
        mesh(nodes)
        converged(nodes)
        assert one.pid() == pid
        eventually(lambda: one.status().pid == pid and one.established() == {two.name, three.name})
        assert one.status().starts == 0
        assert "Deleted" not in heard.communicate()[0]
        os.kill(pid, signal.SIGKILL)  # not a child of the supervisor, which sees its end all the same
        eventually(lambda: one.status().starts == 1 and one.established() == {two.name, three.name})


def test_a_bird_that_dies_while_nobody_says_what_is_wanted_is_started_again(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, two, _ = nodes = net.add(1, 2, 3)
        mesh([one, two])
        converged([one, two])
        one.stop()
        one.supervisor = one.new_supervisor()  # of an agent that is started while the datastore is away
        one.run()
        pid = one.pid()
        eventually(lambda: one.status().pid == pid)
        listening = [monitored(node, 10) for node in (one, two)]
        for starts in (1, 2):
            os.kill(one.pid(), signal.SIGKILL)
            eventually(lambda n=starts: one.status().starts == n and one.status().running)
            eventually(lambda: two.established() == {one.name})
        assert one.knows([one, two])
        pid = one.pid()
        mesh(nodes)
        converged(nodes)
        assert one.pid() == pid, "it is adopted"
        assert [each.communicate()[0].count("Deleted") for each in listening] == [0, 0]
        one.supervisor.want(None)
        eventually(lambda: not one.files.standby.exists())


def test_a_bird_that_hangs_is_replaced(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, two = nodes = net.add(1, 2, times=BirdTimes(hung=1.0, answer=0.5))
        mesh(nodes)
        converged(nodes)
        old = one.pid()
        heard = monitored(one, 5)
        os.kill(old, signal.SIGSTOP)
        eventually(lambda: any("does not answer" in p.what for p in one.status().problems))
        eventually(lambda: one.status().starts == 2 and one.established() == {two.name})
        assert one.knows(nodes)
        one.stop()
        os.kill(one.pid(), signal.SIGSTOP)  # and one that hangs when a new agent comes
        one.restart()
        eventually(lambda: one.status().starts == 1 and one.established() == {two.name})
        assert "Deleted" not in heard.communicate()[0]


def test_a_bird_that_hangs_while_nobody_says_what_is_wanted_is_replaced(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, two = nodes = net.add(1, 2, times=BirdTimes(hung=1.0, answer=0.5))
        mesh(nodes)
        converged(nodes)
        one.stop()
        one.supervisor = one.new_supervisor()  # of an agent that is started while the datastore is away
        one.run()
        old = one.pid()
        eventually(lambda: one.status().running)
        heard = monitored(one, 5)
        os.kill(old, signal.SIGSTOP)
        eventually(lambda: any("does not answer" in p.what for p in one.status().problems))
        eventually(lambda: one.status().starts == 1 and one.status().running)
        assert one.pid() != old
        eventually(lambda: two.established() == {one.name})
        assert one.knows(nodes)
        mesh(nodes)
        converged(nodes)
        assert "Deleted" not in heard.communicate()[0]


def test_learnt_routes_of_others_are_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = render.render
    monkeypatch.setattr(
        render,
        "render",
        lambda config, **more: (
            real(config, **more).replace("import none;", "import all;", 1).replace("persist;", "persist; learn;")
        ),
    )
    with wire(tmp_path) as net:
        one, two = nodes = net.add(1, 2)
        one.ip("route", "add", "10.244.77.0/24", "via", "192.0.2.9", "proto", "static")
        mesh(nodes)
        converged(nodes)
        eventually(lambda: any(s.state is State.ESTABLISHED for s in one.status().sessions))
        learnt = one.netns.run("birdc", "-s", str(one.files.socket), "show", "route", "10.244.77.0/24")
        assert "10.244.77.0/24" in learnt, "BIRD has learnt it"
        eventually(lambda: one.status().sessions[0].exported == 1)
        assert two.knows(nodes)


def test_what_is_not_a_block_of_our_pools_is_refused(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, two = nodes = net.add(1, 2)
        liar = ("10.99.0.0/24", "0.0.0.0/0", "10.244.1.0/24", "10.244.1.128/25", "10.244.0.0/23", "10.244.2.0/24")
        one.want(nodes)
        two.want(nodes, blocks=tuple(map(IPv4Network, liar)))
        eventually(lambda: "10.244.2.0/24" in one.routes())
        assert set(one.routes()) == {"10.244.2.0/24"}
        eventually(lambda: one.status().sessions[0].imported == 1)


def test_foreign_routes_of_another_bird_stay(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, two = nodes = net.add(1, 2, times=BirdTimes(retire=3.0))
        one.ip("route", "add", "198.51.100.0/24", "via", "192.0.2.2", "proto", "bird", "metric", "32")
        one.ip("route", "add", "10.244.9.0/24", "via", "192.0.2.2", "proto", "bird", "metric", "84")
        mesh(nodes)
        eventually(lambda: one.knows(nodes) or "10.244.9.0/24" not in one.routes())
        eventually(lambda: set(one.routes()) == {"10.244.2.0/24", "198.51.100.0/24"})
        pid = one.pid()
        one.supervisor.want(None)
        time.sleep(0.3)
        one.supervisor.want(one.config)
        time.sleep(3.2)
        assert one.pid() == pid, "a moment without is nothing"
        assert "10.244.2.0/24" in one.routes()
        one.supervisor.want(None)
        eventually(lambda: set(one.routes()) == {"198.51.100.0/24"})
        eventually(lambda: not two.routes(), 15)
        assert "unreachable" not in one.ip("route")
        assert not one.files.conf.exists()
        assert not one.files.pid.exists()
        one.supervisor.want(one.config)
        eventually(lambda: two.knows(nodes) and "10.244.2.0/24" in one.routes())


def test_a_route_that_somebody_deletes_is_back(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, _two = nodes = net.add(1, 2)
        mesh(nodes)
        converged(nodes)
        one.ip("route", "del", "10.244.2.0/24")
        eventually(lambda: one.knows(nodes))
        one.ip("link", "set", "eth0", "down")
        one.ip("link", "set", "eth0", "up")
        eventually(lambda: one.knows(nodes))


def test_tunnel_routes_are_on_link(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, two = net.add(1, 2)
        one.ip("link", "add", "tunl9", "type", "veth", "peer", "name", "other")
        one.ip("link", "set", "tunl9", "up")
        one.ip("link", "set", "other", "up")
        one.want([two], tunnel=Tunnel("tunl9", mtu=1480), direct=())
        two.want([one])
        shown = eventually(lambda: one.ip("route", "show", "10.244.2.0/24"))
        assert "via 192.0.2.2 dev tunl9 proto bird" in shown
        assert "onlink" in shown
        assert "mtu 1480" in shown
        # crossSubnet, and both in one; BIRD 2.0.12 sleeps up to 3 s before it sends again what is asked for again
        one.want([two], direct=(IPv4Network("192.0.2.0/28"),))
        eventually(lambda: "via 192.0.2.2 dev eth0" in one.ip("route", "show", "10.244.2.0/24"))
        one.want([two], direct=(), tunnel=None)  # never, and no network in common
        eventually(lambda: not one.routes(), 15)


def test_pools_may_be_many(tmp_path: Path) -> None:
    with wire(tmp_path) as net:
        one, two = nodes = net.add(1, 2)
        pools = (*POOLS, IPv4Network("10.99.0.0/16"))
        mesh(nodes, pools=pools)
        two.want(nodes, blocks=(two.block, IPv4Network("10.99.5.0/26")))
        eventually(lambda: set(one.routes()) == {"10.244.2.0/24", "10.99.5.0/26"})
