"""The eBPF programs at a pod's port, and what they know of the pod: what the mode adds to a port's aspects."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address

from agent.kernel import tc
from agent.kernel.bpf.loader import Loaded, Loader
from agent.kernel.bpf.syscall import Program
from agent.kernel.ip_links import Link
from agent.kernel.netlink import Request
from agent.modes.vxlan import maps as vxlan_maps
from agent.modes.vxlan.maps import Endpoint
from agent.objects.pod_port import Place, PodPort, PortAspect, PortsInKernel


def programs(loaded: Loaded) -> dict[tc.Hook, Program]:
    """Return the programs of the host's end of a pod by where they are attached."""
    return {"ingress": loaded.programs["veth_ingress"], "egress": loaded.programs["veth_egress"]}


def _loaded(bpf: Loader) -> Loaded:
    loaded = bpf.current(vxlan_maps.FAMILY)
    if loaded is None:
        raise OSError(errno.ENODEV, "the eBPF programs are not loaded")
    return loaded


def _programs_differ(port: PodPort, link: Link, seen: PortsInKernel) -> str:
    loaded = seen.host.bpf.current(vxlan_maps.FAMILY)
    for hook, program in programs(loaded).items() if loaded else ():
        if tc.attached(seen.nl, link.index, hook) != program.id:
            return f"host link {port.link} lacks the program {program.name}"
    return ""


def _attach_programs(_port: PodPort, place: Place) -> list[Request]:
    tc.attach(place.nl, place.link.index, programs(_loaded(place.host.bpf)))
    return []


def _endpoint(port: PodPort, link: Link) -> tuple[IPv4Address, Endpoint] | None:
    return (port.pod.address, Endpoint(link.index, port.pod.mac, port.mac)) if port.pod else None


def _entry_differs(port: PodPort, link: Link, seen: PortsInKernel) -> str:
    wanted, held = _endpoint(port, link), seen.host.bpf.maps(vxlan_maps.FAMILY)
    if wanted is None or (held and vxlan_maps.pod(held, wanted[0]) == wanted[1]):
        return ""
    return f"the programs don't know {wanted[0]} as that of {port.link}"


def _put_entry(port: PodPort, place: Place) -> list[Request]:
    if wanted := _endpoint(port, place.link):
        vxlan_maps.put_pod(_loaded(place.host.bpf).maps, *wanted)
    return []


ASPECTS = (PortAspect(_programs_differ, _attach_programs), PortAspect(_entry_differs, _put_entry))
