"""Programs at the ingress and egress of devices: filters of a clsact qdisc (tc-bpf(8)), by raw netlink.

They go with the device, so nothing is left to clean, and one is replaced in one step, so that every packet meets
the old or the new one. TCX (Linux 6.6) could do the same, but attaching by it waits for an RCU grace period: 8 to
12 ms for each program on Linux 6.18, where a filter takes 0.05 ms.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping
from typing import Literal

from agent.datapath import netlink
from agent.datapath.bpfcall import Program
from agent.datapath.netlink import NLM_F_CREATE, NLM_F_EXCL, Netlink, NetlinkError, Request

Hook = Literal["ingress", "egress"]

RTM_NEWQDISC, RTM_NEWTFILTER, RTM_GETTFILTER = 36, 44, 46
TCMSG = struct.Struct("=BxxxiIII")  # family, device, handle, parent, info
CLSACT_HANDLE, CLSACT_PARENT = 0xFFFF0000, 0xFFFFFFF1
PARENT: dict[Hook, int] = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
TCA_KIND, TCA_OPTIONS, TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS, TCA_BPF_ID = 1, 2, 6, 7, 8, 11
DIRECT_ACTION = 1
HANDLE, PRIORITY = 1, 84  # our filter, and no other's, at a hook; before those that tc itself numbers
INFO = PRIORITY << 16 | socket.htons(0x0003)  # ETH_P_ALL


def attach(nl: Netlink, device: int, programs: Mapping[Hook, Program]) -> None:
    """Put programs at a device, in the place of those that we had there. Raises NetlinkError."""
    header = TCMSG.pack(0, device, CLSACT_HANDLE, CLSACT_PARENT, 0) + netlink.text(TCA_KIND, "clsact")
    qdisc = Request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, header, f"add clsact to device {device}")
    there, *errors = nl.batch([qdisc, *(_filter(device, hook, program) for hook, program in programs.items())])
    for error in (None if there and there.errno == errno.EEXIST else there, *errors):
        if error:
            raise error


def attached(nl: Netlink, device: int, hook: Hook) -> int:
    """The id of our program at a device, 0 when it has none. Raises NetlinkError."""
    header = TCMSG.pack(0, device, 0, PARENT[hook], INFO)
    try:
        found = nl.dump(Request(RTM_GETTFILTER, 0, header, f"list filters of device {device}"))
    except NetlinkError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):  # no clsact there
            return 0
        raise
    return next((identity for payload in found if (identity := _identity(payload))), 0)


def ensure(nl: Netlink, device: int, programs: Mapping[Hook, Program]) -> bool:
    """Attach those that are not attached; whether there were any. Raises NetlinkError."""
    missing = {hook: program for hook, program in programs.items() if attached(nl, device, hook) != program.id}
    if missing:
        attach(nl, device, missing)
    return bool(missing)


def _filter(device: int, hook: Hook, program: Program) -> Request:
    options = (
        netlink.u32(TCA_BPF_FD, program.fd)
        + netlink.text(TCA_BPF_NAME, program.name)
        + netlink.u32(TCA_BPF_FLAGS, DIRECT_ACTION)
    )
    payload = (
        TCMSG.pack(0, device, HANDLE, PARENT[hook], INFO)
        + netlink.text(TCA_KIND, "bpf")
        + netlink.attribute(TCA_OPTIONS, options)
    )
    return Request(RTM_NEWTFILTER, NLM_F_CREATE, payload, f"attach {program.name} to device {device}")


def _identity(payload: bytes) -> int:
    found = netlink.attributes(payload, TCMSG.size, len(payload))
    options = found.get(TCA_OPTIONS, b"")
    inner = netlink.attributes(options, 0, len(options))
    _family, _device, handle = struct.unpack_from("=BxxxiI", payload)
    if found.get(TCA_KIND) != b"bpf\0" or handle != HANDLE or TCA_BPF_ID not in inner:
        return 0
    return int(struct.unpack_from("=I", inner[TCA_BPF_ID])[0])
