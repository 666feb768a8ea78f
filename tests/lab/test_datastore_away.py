"""An agent that is restarted while the datastore is away: pods come, go and talk as before."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.lab.lab import Lab, LabNode, conf_of, lab
from tests.lab.runner import RunnerError
from tests.lab.space import start_time
from tests.lab.state import difference, net_state
from tests.lab.talk import TARGET, Servers, ask
from tests.netns.birds import needs_bird
from tests.support import eventually

AWAY = ("--datastore", "dir:/var/lib/nowhere")
MODES = ["host-gw", "vxlan", pytest.param("ipip", marks=needs_bird), "macvlan"]


def restart(node: LabNode, *options: str) -> None:
    assert node.stop_agent() == 0
    node.start_agent(*options)
    node.wait_ready()


def bird_of(node: LabNode) -> str:
    """When its BIRD began, empty when there is none: the agent knows it only once it is told what it should do."""
    path = node.path("/run/testcni/bird/bird.pid")
    return start_time(int(path.read_text())) if path.exists() else ""


def brought_up(it: Lab, mode: str) -> None:
    if mode == "ipip":
        it.wait_converged()


@pytest.mark.parametrize("mode", MODES)
def test_pods_come_and_go_and_reach_other_nodes(mode: str) -> None:
    with lab(2, conf=conf_of(mode)) as it, Servers() as servers:
        brought_up(it, mode)
        one, two = it.nodes
        old, far = one.add_pod("old"), two.add_pod("far")
        servers.start(far)
        before, bird = net_state(one), bird_of(one)
        assert bool(bird) == (mode == "ipip")
        restart(one, *AWAY)
        eventually(lambda: "/var/lib/nowhere" in str(one.problems()))
        new = one.add_pod("new")
        for pod in (old, new):
            assert ask(pod, "tcp", far.address, TARGET) == pod.address
        assert ask(far, "tcp", far.address, TARGET) == far.address
        one.delete_pod(new)
        eventually(lambda: difference(before, net_state(one)) == [])  # BIRD may have a new file to check
        assert bird_of(one) == bird
        restart(one)  # and when the datastore is back, nothing has to be repaired
        eventually(lambda: one.problems() == [])
        assert ask(old, "tcp", far.address, TARGET) == old.address
        eventually(lambda: difference(before, net_state(one)) == [])


@needs_bird
def test_bird_dies_meanwhile_and_its_routes_stay() -> None:
    with lab(2, conf=conf_of("ipip")) as it, Servers() as servers:
        it.wait_converged()
        one, two = it.nodes
        near, far = one.add_pod("near"), two.add_pod("far")
        for pod in (near, far):
            servers.start(pod)
        restart(one, *AWAY)
        os.kill(int(one.path("/run/testcni/bird/bird.pid").read_text()), signal.SIGKILL)
        time.sleep(7)  # longer than peers keep a route as if nothing had happened
        assert ask(near, "tcp", far.address, TARGET) == near.address
        assert ask(far, "tcp", near.address, TARGET) == far.address
        restart(one)
        eventually(lambda: bird_of(one) and one.problems() == [])
        it.wait_converged()
        assert ask(near, "tcp", far.address, TARGET) == near.address


def test_a_network_that_was_never_prepared_waits_for_the_datastore() -> None:
    with lab(1, conf=conf_of("host-gw"), agents=False) as it:
        (node,) = it.nodes
        node.start_agent(*AWAY)
        eventually(node.path("/run/testcni/agent.sock").exists)
        eventually(lambda: "/var/lib/nowhere" in str(node.problems()))
        with pytest.raises(RunnerError) as failed:
            node.add_pod("a")
        assert "/var/lib/nowhere" in str(failed.value)
