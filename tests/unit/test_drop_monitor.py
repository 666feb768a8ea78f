"""`testcnictl monitor`: events as the programs write them, as values, lines and a table."""

from __future__ import annotations

import ipaddress
import json
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from agent import ctl
from agent.ipam.attachments.attachment import Attachment, Lease, encode
from agent.kernel.bpf import loader
from agent.kernel.bpf.map_entries import Count
from agent.modes.packet_monitor import Event, PacketMonitor
from agent.modes.registry import Modes
from agent.modes.vxlan import drop_events, drop_monitor
from agent.modes.vxlan import maps as vxlan_maps
from agent.modes.vxlan.drop_events import Drop, Flow
from tests.networks import OPTIONS, network_of

A, B = IPv4Address("10.244.1.2"), IPv4Address("10.244.2.2")


def event(ethertype: int = 0x0800, protocol: int = 17, remote: str = "0.0.0.0") -> bytes:  # noqa: S104
    ends = A.packed + B.packed + IPv4Address(remote).packed
    ports = struct.pack("!HHH", 1000, 53, ethertype)
    tail = struct.pack("=B6s", protocol, bytes.fromhex("0a580af40102"))
    return struct.pack("=QII", 5_500_000_000, 7, 3) + ends + ports + tail + bytes(7)


def test_an_event_is_48_bytes_as_the_programs_write_them() -> None:
    assert len(event()) == 48
    flow = Flow(A, B, 1000, 53, "udp")
    assert drop_events.drop(event()) == Drop(5.5, "drop_spoofed_ip", 3, flow, None, "0a:58:0a:f4:01:02")
    assert drop_events.drop(event(remote="172.18.0.3")).remote == IPv4Address("172.18.0.3")
    assert drop_events.drop(event(0x86DD)).flow.protocol == "ethertype 0x86dd"
    assert drop_events.drop(event(protocol=47)).flow.protocol == "47"


@pytest.mark.parametrize(("source", "ports"), [(A, (1000, 80)), (B, (80, 1000))])
def test_a_flow_goes_as_the_stack_carried_it(source: IPv4Address, ports: tuple[int, int]) -> None:
    class Held:
        def items(self) -> dict[bytes, bytes]:
            key = A.packed + B.packed + struct.pack("!HH", 1000, 80) + struct.pack("=B3x", 6)
            return {key: source.packed}

    other = B if source == A else A
    assert drop_events.flows({"flows": Held()}) == {Flow(source, other, *ports, "tcp")}  # type: ignore[dict-item]


def pod(folder: Path) -> Attachment:
    lease = Lease(A, ipaddress.ip_network("10.244.1.0/24"))
    one = Attachment("c1", "eth0", network_of("n"), "/ns", "shop/web", (lease,), "0a:58:0a:f4:01:02")
    (folder / f"{one.link}.json").write_bytes(encode(one) + b"\n{}\n")
    return one


def test_pods_have_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = pod(tmp_path)
    (tmp_path / "tcni0.json").write_text("{")
    names = drop_monitor.Names(tmp_path, OPTIONS)
    names.refresh()
    monkeypatch.setattr(socket, "if_indextoname", lambda index: {3: one.link, 4: "eth0"}[index])
    assert (names.at(3), names.at(4)) == ("shop/web", "eth0")
    assert names.flow(Flow(A, B, 1, 2, "tcp")) == "shop/web:1 → 10.244.2.2:2 tcp"


EVENT: Event = {"what": "drop_no_pod", "time": 0.0, "at": "eth0", "remote": "172.18.0.3", "flow": "a → b"}


def test_lines_and_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drop_monitor.line(EVENT).endswith("drop_no_pod         eth0 from 172.18.0.3    a → b")
    counted = [vxlan_maps.no_counters(), {**vxlan_maps.no_counters(), "drop_no_pod": Count(65, 9)}]
    monkeypatch.setattr(vxlan_maps, "counters", lambda _maps: counted.pop(0))
    table = drop_monitor.Table({})
    table.add(EVENT)
    table.add(EVENT)
    screen = table.render()
    assert f"{'drop_no_pod':<24}{65:>12}" in screen
    assert "    2  drop_no_pod" in screen
    assert "forwarded_local" not in screen, "nothing happened to it"


def test_a_node_without_programs_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader, "pinned_maps", lambda *_where: None)
    assert ctl.main(["monitor"]) == ctl.EXIT_UNABLE
    assert "no eBPF maps here" in capsys.readouterr().err


class OneEvent(PacketMonitor):
    """Shows one event, and is interrupted."""

    def __init__(self) -> None:
        self._left = [[EVENT]]

    def wait(self) -> list[Event]:
        if not self._left:
            raise KeyboardInterrupt
        return self._left.pop()

    def line(self, event: Event) -> str:
        return drop_monitor.line(event)

    def screen(self, events: Iterable[Event]) -> str:
        raise NotImplementedError


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_pipe_gets_a_line_for_each_event(
    output: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Modes, "packet_monitor", lambda _modes, _run_dir: OneEvent())
    assert ctl.main(["monitor", "-o", output]) == 0
    printed = capsys.readouterr().out.removesuffix("\n")
    assert (json.loads(printed) if output == "json" else printed) == (
        EVENT if output == "json" else drop_monitor.line(EVENT)
    )
