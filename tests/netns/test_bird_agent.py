"""The node path with BIRD: from Node objects to routes, by a mode that wants nothing but BGP."""

from __future__ import annotations

import threading
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

from agent.host.cni_conf_dir import Confs
from agent.model.cluster import Node as NodeObject
from agent.model.node_status import NodeStatus
from agent.model.problem_board import PartProblems, ProblemBoard
from agent.modes.base import ModeContext
from agent.modes.hostgw import HostGw
from agent.modes.ipip.bgp import Encapsulate, plan
from agent.modes.ipip.bird.node_object import Bird
from agent.modes.ipip.bird.options import OptionsFile
from agent.modes.ipip.bird.supervisor import Supervisor
from agent.modes.ipip.bird.types import BirdConfig, BirdTimes, Secret, Tunnel
from agent.modes.ipip.options import IpipOptions
from agent.modes.registry import Modes
from agent.node.reconciler import Reconciler
from agent.node.reconciler_inputs import Inputs
from agent.objects.state import NodeState
from agent.runtime.observable import Observable
from tests.netns.birds import Node, needs_bird, wire
from tests.netns.node import CONF, RESYNC, Host, command
from tests.networks import parse_conf
from tests.support import eventually

pytestmark = needs_bird


class OnlyBgp(HostGw):
    """Blocks by BGP, and plain routes."""

    options = IpipOptions  # type: ignore[assignment]

    def desired(self, view: ModeContext) -> NodeState:
        found = plan(view, Tunnel("none"), Encapsulate.NEVER)
        return NodeState(sections=frozenset({found.bird} if found.bird else ()), problems=found.problems)


def test_no_session_begins_without_the_password_that_is_asked_for(tmp_path: Path) -> None:
    file, secret = tmp_path / "bgp.yaml", tmp_path / "secret"
    file.write_text(f"passwordFile: {secret}")
    host = Host(tmp_path / "run")
    wanted: list[BirdConfig | None] = []
    options = OptionsFile(file, PartProblems("bgp-options").report_error, tmp_path / "note")
    inputs = Inputs(
        host.snapshot,
        Observable(Confs(frozenset({parse_conf({**CONF, "mode": "ipip"}).network}))),
        host.demand,
        host.attachments,
        ProblemBoard(),
        host.kernel,
        Modes(OnlyBgp()),
        wake_on=(options.said,),
        objects=Modes(OnlyBgp()).node_objects(Bird(wanted.append, options)),
    )
    reconciler = Reconciler("one", inputs, host.block_controller, RESYNC)
    host.close()
    reconciler.once()
    assert wanted == [None]
    assert any(problem.where == "bgp" for problem in reconciler.status.get().problems)
    secret.write_text("geheim\n")
    secret.chmod(0o600)
    reconciler.once()
    assert wanted[-1]
    assert wanted[-1].password == Secret("geheim")
    secret.unlink()
    reconciler.once()
    assert wanted[-1].password == Secret("geheim"), "the last good one stays"
    count = len(wanted)
    fresh = OptionsFile(file, PartProblems("bgp-options").report_error, tmp_path / "note")
    objects = Modes(OnlyBgp()).node_objects(Bird(wanted.append, fresh))
    again = Reconciler("one", replace(inputs, objects=objects), host.block_controller, RESYNC)
    again.once()
    assert len(wanted) == count, "BIRD stands as the agent before had left it"


def as_object(node: Node) -> NodeObject:
    return NodeObject(node.name, (node.address,), (node.block,))


def test_from_node_objects_to_routes(tmp_path: Path) -> None:
    file = tmp_path / "bgp.yaml"
    file.write_text("asNumber: 64512")
    with wire(tmp_path) as net:
        two, three = net.add(2, 3)
        host = Host(tmp_path / "run")
        command("ip", "link", "set", "wire", "master", "switch")
        board = ProblemBoard()
        bird = Supervisor(tmp_path / "bird", board.part("bird"), times=BirdTimes(retire=1.0))
        options = OptionsFile(file, board.part("bgp-options").report_error)
        inputs = Inputs(
            host.snapshot,
            host.confs,
            host.demand,
            host.attachments,
            board,
            host.kernel,
            Modes(OnlyBgp()),
            wake_on=(options.said,),
            objects=Modes(OnlyBgp()).node_objects(Bird(bird.want, options)),
        )
        reconciler = Reconciler("one", inputs, host.block_controller, RESYNC)
        stop = threading.Event()
        network = parse_conf({**CONF, "mode": "ipip"}).network
        host.close()
        for run in (reconciler.run, bird.run):
            threading.Thread(target=run, args=(stop,), daemon=True).start()

        def routes() -> str:
            return command("ip", "route", "show", "proto", "bird")

        def told() -> str:
            status: NodeStatus = reconciler.status.get()
            return "\n".join(map(str, status.problems))

        host.put(as_object(two))
        host.confs.publish(Confs(frozenset({network})))
        me = replace(two.peer, name="one", address=IPv4Address("192.0.2.1"))
        for node in (two, three):
            other = three if node is two else two
            node.config = replace(node.config, peers=(me, other.peer))
            node.supervisor.want(node.config)
            node.run()
        try:
            eventually(lambda: "10.244.2.0/24 via 192.0.2.2 dev eth0" in routes())
            eventually(lambda: two.routes().get("10.244.1.0/24") == "192.0.2.1")
            assert "10.244.3.0/24" not in routes(), "it is no node yet"
            host.put(as_object(three))
            eventually(lambda: "10.244.3.0/24 via 192.0.2.3 dev eth0" in routes())
            host.drop(three.name)
            eventually(lambda: "10.244.3.0/24" not in routes(), 15)
            assert not told()
            file.write_text("asNumber: none")
            reconciler.drifted()
            assert "bgp:" in eventually(told)
            assert "10.244.2.0/24" in routes()
            host.confs.publish(Confs())
            eventually(lambda: "proto bird" not in command("ip", "route"), 15)
        finally:
            bird.want(None)
            eventually(lambda: not (tmp_path / "bird/bird.conf").exists())
            stop.set()
