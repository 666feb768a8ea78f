"""Attachments without a file that this agent can use: their addresses stay in use.

A file that a newer version wrote, or that is damaged, still has addresses in its text. The kernel knows addresses
of a link that exists.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.codec import strict_json
from agent.codec.network_json import OptionTypes
from agent.ip import Address
from agent.ipam.attachments.attachment import Attachment, decode_line
from agent.model.marks import ALIAS
from agent.model.problem import Problem
from agent.runtime import atomic_file

LARGEST = 1 << 20  # bytes of a file; an attachment has about 1,500
WORD = re.compile(rb"[0-9A-Fa-f:.]{2,45}")
LEASES = re.compile(rb'"leases"\s*:\s*\[(.*?)\]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class UnreadableAttachment:
    """An attachment of which only the link's name is certain, with the addresses that it may have."""

    link: str
    """Name of the host end, which is also the file's without its suffix."""
    reason: str
    path: Path | None = None
    """Its file; None: it has none."""
    addresses: frozenset[Address] = frozenset()
    complete: bool = False
    """Whether these are certainly all of its addresses."""
    network: str = ""
    """The network's name; empty: not known."""
    guess: Attachment | None = field(default=None, hash=False)
    """The attachment of the file, if its keys have today's meaning."""
    alive: bool = True
    """Whether the link exists, by the last answer of the kernel."""

    @property
    def name(self) -> str:
        """Return the name of its file, or of the link if it has no file: unique among all."""
        return self.path.name if self.path else self.link

    @property
    def blind(self) -> bool:
        """Return whether its link may have an unknown address."""
        return self.alive and not self.complete

    def problem(self) -> Problem:
        """Return the problem for a person."""
        where = f"attachment file {self.path}" if self.path else f"link {self.link}"
        held = ", ".join(sorted(map(str, self.addresses))) or "no address is known"
        what = f"{self.reason}; its addresses stay in use ({held})"
        if self.blind:
            what += "; as they may not be all, no pod can be added"
        how = "delete its pod, or start an agent of the version that wrote the file"
        return Problem(
            where, what, f"{how}; if the pod is gone, remove the file" if self.path else "delete its pod"
        )


def describe(path: Path, reason: str, types: OptionTypes) -> UnreadableAttachment:
    """Return the link, network and addresses that can be found in a file that cannot be used."""
    found = UnreadableAttachment(path.name.partition(".")[0], reason, path)
    try:
        data = atomic_file.read(path, LARGEST)
    except OSError:
        return found
    first = data.partition(b"\n")[0]
    leases = LEASES.search(first)
    found = replace(found, addresses=scan(data), complete=bool(leases and scan(leases[1])))
    try:
        doc = strict_json.mapping(first)
        name = doc["network"]["name"]
        found = replace(found, network=name if isinstance(name, str) else "")
        return replace(found, guess=decode_line(doc, types))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return found


def scan(text: bytes) -> frozenset[Address]:
    """Return all addresses in a text, with or without a mask; some may be addresses of other machines."""
    found: set[Address] = set()
    for word in WORD.findall(text):
        try:
            found.add(ipaddress.ip_address(word.decode().strip(".")))
        except ValueError:
            continue
    return frozenset(found)


def known_by_kernel(
    found: UnreadableAttachment, addresses: frozenset[Address] | None, alias: str
) -> UnreadableAttachment:
    """Return it with the kernel's addresses and alias; `addresses` is None if its link does not exist."""
    if addresses is None:
        return replace(found, alive=False)
    words = alias.split(" ")
    network = words[1] if len(words) > 1 and alias.startswith(f"{ALIAS} ") else ""
    return replace(
        found,
        addresses=found.addresses | addresses,
        complete=found.complete or bool(addresses),
        network=found.network or network,
        alive=True,
    )
