"""The guard of a path of packets is created before the path, and removed after it; no path opens without it."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from agent.ipam.attachments.attachment import link_name
from agent.kernel import hardening, ip_links, link_setup, netlink
from agent.kernel.bpf.loader import Loader
from agent.model.marks import BPF_PINS, bridge_mac
from agent.modes.ipip import device as ipip_device
from agent.modes.ipip.device import IpipDevice
from agent.modes.ipip.state import IpipState
from agent.modes.registry import BUILT_IN
from agent.modes.vxlan.marks import VXLAN_DEVICE
from agent.modes.vxlan.options import KERNEL
from agent.modes.vxlan.state import VxlanState
from agent.node import kernel_state
from agent.node.apply import NodeProgrammer
from agent.objects.base import Context
from agent.objects.host_kernel import HostKernel
from agent.objects.state import Bridge, NodeState
from tests.netns.node import OBJECTS, Host, Pod, command

SYSCTLS = Path("/proc/sys/net")
DEVICE = "testcni-ipip"


@pytest.fixture
def nft_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The devices of ipip that there were at each write of nft.

    Beside it, a file `broken` has all writes fail, and `blind` all calls.
    """
    real, log = command("sh", "-c", "command -v nft").strip(), tmp_path / "log"
    script = tmp_path / "nft"
    script.write_text(
        f"""#!/bin/sh
        [ -e {tmp_path}/blind ] && {{ echo blind >&2; exit 1; }}
        case "$*" in *-f*)
            [ -e {tmp_path}/broken ] && {{ echo broken >&2; exit 1; }}
            ip -br link show {DEVICE} >>{log} 2>&1
        esac
        exec {real} "$@"
        """
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return log


def wanted(*nodes: str, device: bool = True) -> NodeState:
    senders = frozenset(map(IPv4Address, ("192.0.2.1", *nodes)))
    return NodeState(sections=frozenset({IpipState(IPv4Address("192.0.2.1"), 1480, device=device, nodes=senders)}))


class Programmer:
    """The objects of one agent."""

    def __init__(self) -> None:
        self.ipip = IpipDevice()
        self._bpf = Loader(OBJECTS, BPF_PINS)
        self._programmer = NodeProgrammer(BUILT_IN.node_objects(self.ipip))

    def program(self, state: NodeState, sysctls: Path = SYSCTLS) -> list[str]:
        """Return the problems that came up."""
        nl, is_made = netlink.host(), self._programmer.is_made
        ctx = Context(nl, kernel_state.read(nl, is_made), HostKernel(self._bpf, sysctls), is_made)
        return [str(problem) for problem in self._programmer.program(ctx, state).problems]


@pytest.fixture
def programmer() -> Programmer:
    return Programmer()


def device() -> str:
    found = ip_links.link(netlink.host(), DEVICE)
    return found.kind if found else ""


def has_ipip_devices() -> bool:
    """Return whether this kernel has them; else only that none is tried can be seen."""
    return IpipDevice().encapsulates()


def test_no_ipip_device_is_made_before_its_filter(nft_log: Path, programmer: Programmer) -> None:
    broken = nft_log.with_name("broken")
    broken.touch()
    problems = programmer.program(wanted())
    assert device() == ""
    assert any(f"device {DEVICE}: it is not made" in problem for problem in problems)
    broken.unlink()
    programmer.program(wanted())
    assert "does not exist" in nft_log.read_text()
    if has_ipip_devices():
        assert device() == "ipip"


def test_an_ipip_device_keeps_its_last_filter_and_goes_where_it_has_none(
    nft_log: Path, programmer: Programmer
) -> None:
    if not has_ipip_devices():
        pytest.skip("this kernel has no ipip devices")
    assert programmer.program(wanted("192.0.2.2")) == []
    nft_log.with_name("broken").touch()
    problems = programmer.program(wanted("192.0.2.3"))
    assert any("it is not made or changed" in problem for problem in problems)
    assert device() == "ipip"
    assert "192.0.2.2" in command("nft", "list", "table", "inet", "testcni")
    command("nft", "flush", "ruleset")
    problems = programmer.program(wanted("192.0.2.3"))
    assert device() == ""
    assert any("it was removed" in problem for problem in problems)


@pytest.mark.parametrize("seen", [False, True])
def test_an_ipip_device_of_an_earlier_agent_goes_where_nothing_shows_its_filter(
    nft_log: Path, programmer: Programmer, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    """The agent does not assume that the filter is there, unless it has seen it."""
    kind = "ipip" if has_ipip_devices() else "bridge"  # to be looked at, it only has to be there
    monkeypatch.setitem(ipip_device.KINDS, True, kind)
    command("ip", "link", "add", DEVICE, "type", kind, *(["local", "192.0.2.1"] if kind == "ipip" else []))
    programmer.ipip._filtered = seen
    nft_log.with_name("blind").touch()
    problems = programmer.program(wanted())
    assert device() == (kind if seen else "")
    said = "it is not made or changed" if seen else "it was removed, as nothing shows that nft drops"
    assert any(said in problem for problem in problems)


@pytest.mark.parametrize("by_ebpf", [True, False])
def test_the_filter_goes_after_the_ipip_device(nft_log: Path, programmer: Programmer, by_ebpf: bool) -> None:
    if not has_ipip_devices():
        pytest.skip("this kernel has no ipip devices")
    assert programmer.program(wanted()) == []
    nft_log.unlink()
    assert programmer.program(wanted(device=False) if by_ebpf else NodeState()) == []
    assert device() == ("bridge" if by_ebpf else "")
    assert "ipip" not in command("nft", "list", "ruleset")
    assert f"{DEVICE}@" not in nft_log.read_text()


@pytest.mark.parametrize("kind", ["bridge", "vxlan", "ipip"])
def test_a_device_hears_no_router_even_where_the_node_can_not_forward(
    tmp_path: Path, kind: str, programmer: Programmer
) -> None:
    Path("/proc/sys/net/ipv6/conf/default/accept_ra").write_text("1")
    for version in ("ipv4", "ipv6"):  # all but the switches of forwarding
        (tmp_path / version).mkdir()
        (tmp_path / version / "conf").symlink_to(f"/proc/sys/net/{version}/conf")
    mine = IPv4Address("192.0.2.1")
    state = {
        "bridge": NodeState(
            bridges=frozenset({Bridge("testcni0", bridge_mac("one", "testcni0"), 1500, frozenset())})
        ),
        "vxlan": NodeState(sections=frozenset({VxlanState(VXLAN_DEVICE, 1, 8472, 1450, mine, backend=KERNEL)})),
        "ipip": wanted(device=False),
    }[kind]
    problems = programmer.program(replace(state, forwarding=frozenset({4})), sysctls=tmp_path)
    assert any("forwarding" in problem for problem in problems)
    (name,) = state.made
    made = ip_links.link(netlink.host(), name)
    assert made
    assert made.up
    assert hardening.differs(made) == ""
    assert link_setup.ipv4(made, hardening.IPV4_DEVCONF_ACCEPT_REDIRECTS) == 0


def test_a_pods_port_is_up_last(tmp_path: Path) -> None:
    """Its guard is attached by then, and the bridge learns nothing from it."""
    host, pod = Host(tmp_path), Pod("c1")
    host.add(Pod("c0"))  # the node is ready
    name = link_name("c1", "eth0")
    seen: list[tuple[bool, int | None]] = []
    with IPRoute() as heard:
        heard.bind()
        host.add(pod)
        end = ip_links.link(netlink.host(), name)
        assert end
        while not any(up for up, _learns in seen):
            for message in heard.get():
                if (
                    message.get("index") == end.index
                    and message["event"] == "RTM_NEWLINK"
                    and message["family"] == 0
                ):
                    slave = (message.get_attr("IFLA_LINKINFO") or message).get_attr("IFLA_INFO_SLAVE_DATA")
                    learns = slave.get_attr("IFLA_BRPORT_LEARNING") if slave else None
                    seen.append((bool(message["flags"] & ip_links.IFF_UP), learns))
    assert next(learns for up, learns in seen if up) == 0
