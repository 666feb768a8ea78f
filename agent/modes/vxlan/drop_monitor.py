"""Drops with their reasons, and flows by the names of pods, as they happen: for `testcnictl monitor`."""

from __future__ import annotations

import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.ipam.attachments import attachment, attachment_files
from agent.kernel.bpf import loader
from agent.kernel.bpf.syscall import BpfError, Map
from agent.model.marks import BPF_PINS
from agent.model.network import ModeOptions
from agent.modes.packet_monitor import Event, PacketMonitor
from agent.modes.vxlan import drop_events
from agent.modes.vxlan import maps as vxlan_maps
from agent.modes.vxlan.drop_events import Drop, Drops, Flow
from agent.runtime import atomic_file

REFRESH = 1.0  # seconds
CLEAR, BOLD, RED, PLAIN = "\x1b[H\x1b[2J", "\x1b[1m", "\x1b[31m", "\x1b[0m"


class Names:
    """Pods by their addresses and by their host ends, from the files of the agent, which need not run."""

    def __init__(self, folder: Path, options: Mapping[str, type[ModeOptions]]) -> None:
        """`options`: those of all modes, as the files have them."""
        self._folder = folder
        self._options = options
        self._by_address: dict[str, str] = {}
        self._by_link: dict[str, str] = {}

    def refresh(self) -> None:
        """Read the files again."""
        self._by_address, self._by_link = {}, {}
        for path in self._folder.glob(f"*{attachment_files.WIRED}"):
            try:
                one = attachment.decode(atomic_file.read(path), self._options, whole=True)
            except (OSError, ValueError):  # it goes just now, or is from another version
                continue
            name = one.pod or one.container_id
            self._by_link[one.link] = name
            self._by_address.update((str(lease.address), name) for lease in one.leases)

    def at(self, device: int) -> str:
        """The pod at a device, or the device's name."""
        try:
            name = socket.if_indextoname(device)
        except OSError:
            return f"device {device}"
        return self._by_link.get(name, name)

    def of(self, address: object) -> str:
        """The pod that has an address, or the address."""
        return self._by_address.get(str(address), str(address))

    def flow(self, flow: Flow) -> str:
        """A flow for a person."""
        source, destination = self.of(flow.source), self.of(flow.destination)
        return f"{source}:{flow.source_port} → {destination}:{flow.destination_port} {flow.protocol}"


class DropMonitor(PacketMonitor):
    """Drops that were not shown yet, and flows that begin from now on."""

    def __init__(self, run_dir: Path, options: Mapping[str, type[ModeOptions]], pins: Path = BPF_PINS) -> None:
        """`options`: those of all modes. Raises OSError."""
        maps = loader.pinned_maps(pins, vxlan_maps.FAMILY)
        if maps is None:
            raise BpfError(2, "there are no eBPF maps here: no network of mode vxlan and backend ebpf is in use")
        self._names = Names(run_dir / "attachments", options)
        self._maps: Mapping[str, Map] = maps
        self._drops = Drops(maps["events"], run_dir)
        self._flows = drop_events.flows(maps)
        self._table = Table(maps)
        self._offset = time.time() - time.monotonic()

    def wait(self) -> list[Event]:
        """Return the drops and new flows of the next second. Raises OSError."""
        dropped = self._drops.wait(REFRESH)
        now, before = drop_events.flows(self._maps), self._flows
        self._flows = now
        self._names.refresh()
        return [*map(self._drop, dropped), *map(self._flow, sorted(now - before, key=str))]

    def line(self, event: Event) -> str:
        """Return an event as a line of text."""
        return line(event)

    def screen(self, events: Iterable[Event]) -> str:
        """Return a screen of all events so far, these included. Raises OSError."""
        for event in events:
            self._table.add(event)
        return self._table.render()

    def _drop(self, drop: Drop) -> Event:
        return {
            "what": drop.reason,
            "time": round(drop.time + self._offset, 6),
            "at": self._names.at(drop.device),
            "mac": drop.mac,
            "remote": str(drop.remote) if drop.remote else None,
            **self._ends(drop.flow),
        }

    def _flow(self, flow: Flow) -> Event:
        return {"what": "flow", "time": round(time.time(), 6), **self._ends(flow)}

    def _ends(self, flow: Flow) -> dict[str, Any]:
        return {
            "source": str(flow.source),
            "sourcePort": flow.source_port,
            "destination": str(flow.destination),
            "destinationPort": flow.destination_port,
            "protocol": flow.protocol,
            "flow": self._names.flow(flow),
        }


def line(event: Event) -> str:
    """Return an event as a line of text."""
    when = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    return f"{when} {event['what']:<20}{_where(event):<24}{event['flow']}"


def _where(event: Event) -> str:
    remote = f" from {event['remote']}" if event.get("remote") else ""
    return f"{event.get('at', '')}{remote} "


class Table:
    """A screen of what happened since the start, the latest first."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._maps = maps
        self._before = vxlan_maps.counters(maps)
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self._last: dict[tuple[str, str, str], str] = {}

    def add(self, event: Event) -> None:
        """Take an event in."""
        key = (str(event["what"]), _where(event), str(event["flow"]))
        self._seen[key] += 1
        self._last.pop(key, None)
        self._last[key] = time.strftime("%H:%M:%S", time.localtime(event["time"]))

    def render(self) -> str:
        """The screen: exact counts by reason, then the events, of which one drop in 64 of a kind is told."""
        return CLEAR + "\n".join(list(self._lines())[: shutil.get_terminal_size().lines - 1])

    def _lines(self) -> Iterator[str]:
        yield f"{BOLD}{'PACKETS SINCE THE START':<26}{'':>12}{PLAIN}"
        for reason, count in vxlan_maps.counters(self._maps).items():
            if more := count.packets - self._before[reason].packets:
                yield f"  {RED if reason.startswith('drop') else ''}{reason:<24}{more:>12}{PLAIN}"
        yield ""
        yield f"{BOLD}{'LAST':<10}{'TOLD':>5}  {'WHAT':<20}{'AT':<24}FLOW{PLAIN}"
        for (what, where, flow), last in reversed(self._last.items()):
            yield f"{last:<10}{self._seen[what, where, flow]:>5}  {what:<20}{where:<24}{flow}"
