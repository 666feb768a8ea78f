"""`testcnictl monitor`: drops with their reasons, and flows by the names of pods, as they happen."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.ipam import attachment, attachment_files
from agent.kernel.bpf import loader
from agent.kernel.bpf.syscall import BpfError, Map
from agent.modes.registry import BUILT_IN
from agent.modes.vxlan import drop_events
from agent.modes.vxlan import maps as vxlan_maps
from agent.modes.vxlan.drop_events import Drop, Drops, Flow
from agent.runtime import atomic_file

REFRESH = 1.0  # seconds
CLEAR, BOLD, RED, PLAIN = "\x1b[H\x1b[2J", "\x1b[1m", "\x1b[31m", "\x1b[0m"


class Names:
    """Pods by their addresses and by their host ends, from the files of the agent, which need not run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_address: dict[str, str] = {}
        self._by_link: dict[str, str] = {}

    def refresh(self) -> None:
        """Read the files anew."""
        self._by_address, self._by_link = {}, {}
        for path in self._folder.glob(f"*{attachment_files.WIRED}"):
            try:
                one = attachment.decode(atomic_file.read(path), BUILT_IN.options, whole=True)
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


class Watch:
    """What happens from now on, and the drops that nobody has read yet."""

    def __init__(self, run_dir: Path) -> None:
        """Raises OSError."""
        maps = loader.maps()
        if maps is None:
            raise BpfError(2, "there are no eBPF maps here: no network of mode vxlan and backend ebpf is in use")
        self.names = Names(run_dir / "attachments")
        self.maps: Mapping[str, Map] = maps
        self._drops = Drops(maps["events"], run_dir)
        self._flows = drop_events.flows(maps)
        self._offset = time.time() - time.monotonic()

    def happened(self) -> list[dict[str, Any]]:
        """Drops and new flows of the last second, as JSON. Raises OSError."""
        dropped = self._drops.wait(REFRESH)
        now, before = drop_events.flows(self.maps), self._flows
        self._flows = now
        self.names.refresh()
        return [*map(self._drop, dropped), *map(self._flow, sorted(now - before, key=str))]

    def _drop(self, drop: Drop) -> dict[str, Any]:
        return {
            "what": drop.reason,
            "time": round(drop.time + self._offset, 6),
            "at": self.names.at(drop.device),
            "mac": drop.mac,
            "remote": str(drop.remote) if drop.remote else None,
            **self._ends(drop.flow),
        }

    def _flow(self, flow: Flow) -> dict[str, Any]:
        return {"what": "flow", "time": round(time.time(), 6), **self._ends(flow)}

    def _ends(self, flow: Flow) -> dict[str, Any]:
        return {
            "source": str(flow.source),
            "sourcePort": flow.source_port,
            "destination": str(flow.destination),
            "destinationPort": flow.destination_port,
            "protocol": flow.protocol,
            "flow": self.names.flow(flow),
        }


def line(event: Mapping[str, Any], output: str) -> str:
    """One event as a line for a person, or for a program."""
    if output == "json":
        return json.dumps(event, ensure_ascii=False)
    when = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    return f"{when} {event['what']:<20}{_where(event):<24}{event['flow']}"


def _where(event: Mapping[str, Any]) -> str:
    remote = f" from {event['remote']}" if event.get("remote") else ""
    return f"{event.get('at', '')}{remote} "


class Table:
    """A screen of what happened since the start, the latest first."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._maps = maps
        self._before = vxlan_maps.counters(maps)
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self._last: dict[tuple[str, str, str], str] = {}

    def add(self, event: Mapping[str, Any]) -> None:
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
