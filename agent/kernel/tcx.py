"""Attach eBPF programs to the ingress and egress of devices with TCX (bpf(2), Linux 6.6), without a qdisc.

To add or delete a clsact qdisc stops the device's queues for some ms (qdisc_graft in net/sched/sch_api.c); TCX
loses no packet. Each change waits for an RCU grace period, so pods have it only where a clsact is impossible.
Programs are detached when the device is deleted.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
from collections.abc import Iterator, Mapping

from agent.kernel.bpf import syscall
from agent.kernel.bpf.syscall import BpfError, Program
from agent.kernel.tc import Hook

TYPE: Mapping[Hook, int] = {"ingress": 46, "egress": 47}  # BPF_TCX_INGRESS, BPF_TCX_EGRESS
REPLACE = 1 << 2  # BPF_F_REPLACE
MOST = 64  # programs at a hook (BPF_MPROG_MAX)
LOOPBACK = 1

ATTACH = struct.Struct("=IIIIIIQ")  # device, program, type, flags, program to replace, relative, revision
QUERY = struct.Struct("=IIIIQIxxxxQQQQ")  # device, type, flags twice, ids, how many, flags and links, revision


@functools.cache
def known() -> bool:
    """Return whether the kernel has TCX. Raises BpfError."""
    try:
        _ids(LOOPBACK, "ingress")
    except BpfError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def ensure(device: int, programs: Mapping[Hook, Program]) -> bool:
    """Attach missing programs, or replace those of the same name; return whether any was. Raises BpfError."""
    missing = [hook for hook, program in programs.items() if program.id not in _ids(device, hook)]
    for hook in missing:
        program = programs[hook]
        old = next(_of_name(device, hook, program.name), None)
        flags, replaced = (REPLACE, old) if old is not None else (0, 0)
        try:
            attr = ATTACH.pack(device, program.fd, TYPE[hook], flags, replaced, 0, 0)
            syscall.call(syscall.PROG_ATTACH, attr, f"attach {program.name} to device {device}")
        finally:
            if old is not None:
                os.close(old)
    return bool(missing)


def has(device: int, hook: Hook, program: Program) -> bool:
    """Return whether this program is at a device, by its id. Raises BpfError."""
    return known() and program.id in _ids(device, hook)


def attached(device: int, hook: Hook, name: str) -> bool:
    """Return whether a program of a name is at a device. Raises BpfError."""
    found = next(_of_name(device, hook, name), None)
    if found is None:
        return False
    os.close(found)
    return True


def detach(device: int, programs: Mapping[Hook, str]) -> bool:
    """Detach the programs of these names; return whether there were any. Raises BpfError."""
    gone = False
    for hook, name in programs.items():
        for fd in _of_name(device, hook, name):
            try:
                attr = ATTACH.pack(device, fd, TYPE[hook], 0, 0, 0, 0)
                syscall.call(syscall.PROG_DETACH, attr, f"detach {name} from device {device}")
            finally:
                os.close(fd)
            gone = True
    return gone


def _of_name(device: int, hook: Hook, name: str) -> Iterator[int]:
    """Yield descriptors of the programs of a name at a device; the caller closes them."""
    for identity in _ids(device, hook):
        try:
            fd = syscall.by_id(identity)
        except BpfError as error:
            if error.errno == errno.ENOENT:  # it was just detached
                continue
            raise
        if syscall.program(fd).name == name:
            yield fd
        else:
            os.close(fd)


def _ids(device: int, hook: Hook) -> tuple[int, ...]:
    """Return the ids of all programs at a device, in their order."""
    room = (ctypes.c_uint32 * MOST)()
    attr = ctypes.create_string_buffer(
        QUERY.pack(device, TYPE[hook], 0, 0, ctypes.addressof(room), MOST, 0, 0, 0, 0), QUERY.size
    )
    syscall.call(syscall.PROG_QUERY, attr, f"list programs of device {device}")
    return tuple(room[: QUERY.unpack(attr.raw)[5]])
