"""Any step can fail, and the agent can be killed at any step: nothing is left and nothing is lost."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agent.errors import CniError
from agent.ipam.attachments.attachment import Attachment
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.kernel.bpf import syscall
from agent.kernel.netlink import Netlink, NetlinkError, Request
from agent.modes.hostgw import HostGw
from agent.objects.host_kernel import HostKernel
from tests.netns.node import CONF, IPIP, MACVLAN, VXLAN, Host, Pod, command
from tests.networks import OPTIONS

CLONE_NEWNS = 0x20000
MOST = 200  # more steps than any verb has


class Steps:
    """Counts the steps that reach outside, netlink, BPF and files, and acts at one of them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._count = 0
        self._at = -1
        self._act: Callable[[], None] = refuse
        send, call = Netlink._send, syscall.call

        def counted(nl: Netlink, requests: Sequence[Request]) -> int:
            self._step()
            return send(nl, requests)

        def audit(event: str, args: tuple[object, ...]) -> None:
            if event in ("open", "os.rename", "os.remove") and str(args[0]).startswith(str(folder)):
                self._step()

        def called(number: int, *more: Any) -> int:
            self._step()
            return call(number, *more)

        monkeypatch.setattr(Netlink, "_send", counted)
        monkeypatch.setattr(syscall, "call", called)
        sys.addaudithook(audit)

    def arm(self, at: int, act: Callable[[], None]) -> None:
        self._count, self._at, self._act = 0, at, act

    def disarm(self) -> None:
        self._at = -1

    def _step(self) -> None:
        self._count += 1
        if self._count == self._at:
            self._act()


def refuse() -> None:
    raise NetlinkError(errno.EIO, "injected")


def inside(pod: Pod) -> list[str]:
    """A slave is in the pod only: no look at the node finds one that stayed."""
    return [link["ifname"] for link in pod.json("link")]


@pytest.mark.parametrize("conf", [CONF, VXLAN, IPIP, MACVLAN], ids=lambda conf: str(conf.get("mode", "host-gw")))
def test_an_add_that_fails_at_any_step_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conf: dict[str, Any]
) -> None:
    host, pod = Host(tmp_path, conf=conf), Pod("c1")
    host.add(Pod("other"))
    before = host.state()
    steps = Steps(tmp_path, monkeypatch)
    failures = 0
    for at in range(1, MOST):
        steps.arm(at, refuse)
        try:
            host.add(pod)
        except CniError as error:
            assert "injected" in str(error)  # noqa: PT017 - some steps need not fail the ADD
            failures += 1
        steps.disarm()
        if host.attachments.get("c1", "eth0"):  # it got through, or what failed was the undo
            host.delete(pod)
        assert host.state() == before, f"after a failure at step {at}"
        assert inside(pod) == ["lo"], f"after a failure at step {at}"
        if at > failures + 5:
            break
    assert failures >= 5
    host.add(pod)
    assert pod.reaches("192.0.2.1")


@pytest.mark.parametrize("conf", [CONF, VXLAN, IPIP, MACVLAN], ids=lambda conf: str(conf.get("mode", "host-gw")))
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_a_crash_at_any_step_heals_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, conf: dict[str, Any]
) -> None:
    host, pod = Host(tmp_path, conf=conf), Pod("c1")
    other = Pod("other")
    host.add(other)
    host.close()  # a thread that holds a lock when the process forks would hold it in the child for ever
    before = host.state()
    steps = Steps(tmp_path, monkeypatch)
    crashes = 0
    for at in range(1, MOST):
        if verb == "DEL":
            host.add(pod)
        child = os.fork()
        if child == 0:
            # a fork takes no threads along
            monkeypatch.setattr(host.kernel.reaper, "_threads", ThreadPoolExecutor(1))
            steps.arm(at, lambda: os._exit(9))
            host.call(verb, pod)
            os._exit(0)
        crashed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        crashes += crashed
        host.attachments = AttachmentStore(tmp_path, 0, OPTIONS)
        host.attachments.load()
        host.handler = host.new_handler()
        host.handler.recover()
        if (known := host.attachments.get("c1", "eth0")) and verb == "ADD":
            assert known.wired is not None, "the clean-up after a restart leaves whole attachments only"
        host.delete(pod)
        state = host.state()
        assert inside(pod) == ["lo"]
        assert {k: v for k, v in state.items() if k != "used"} == {k: v for k, v in before.items() if k != "used"}
        assert [a.container_id for a in host.attachments.all()] == ["other"]
        if not crashed:
            break
    assert crashes >= 5
    assert other.reaches("192.0.2.1")


def test_a_full_disk_fails_the_add_and_leaves_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
    command("mount", "--make-rprivate", "/")
    command("mount", "-t", "tmpfs", "-o", "size=16k,nr_inodes=6", "small", str(small))
    host = Host(small)
    pods = [Pod(f"c{number}") for number in range(8)]
    for pod in pods:
        try:
            host.add(pod)
        except CniError as error:
            assert "No space left" in str(error)  # noqa: PT017
            break
    else:
        pytest.fail("the disk never got full")
    before = host.state()
    with pytest.raises(CniError, match=r"No space left.*/attachments/.*\(free space "):
        host.add(pods[-1])
    assert host.state() == before
    host.delete(pods[0])
    host.add(pods[-1])
    assert pods[-1].reaches("10.244.1.1")


def test_healing_frees_pods_whose_link_vanished(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    host.add(pod)
    pod.run("ip", "link", "del", "eth0")
    host.handler.recover()
    assert host.attachments.all() == ()
    host.add(pod, CONF)
    assert pod.reaches("10.244.1.1")


def test_an_agent_starts_though_a_pod_can_not_be_healed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does whose rights no longer suffice for the mode of a pod that went meanwhile."""
    host, first, second = Host(tmp_path), Pod("c1"), Pod("c2")
    for pod in (first, second):
        host.add(pod)
        pod.run("ip", "link", "del", "eth0")
    unwire = HostGw.unwire

    def refused(way: HostGw, host: HostKernel, attachment: Attachment) -> None:
        if attachment.container_id == "c1":
            raise OSError(errno.EPERM, "a program can't be read")
        unwire(way, host, attachment)

    with monkeypatch.context() as broken:
        broken.setattr(HostGw, "unwire", refused)
        host.handler.recover()
    (left,) = host.attachments.all()
    assert left.container_id == "c1", "what can't be removed keeps its address, and the others go"
    host.delete(first)
    assert host.attachments.all() == ()
