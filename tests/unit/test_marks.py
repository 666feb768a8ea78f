"""docs/marks.md names every number and name that is shared with other programs, and none that is not so."""

from __future__ import annotations

import re
from pathlib import Path

from agent import options
from agent.cluster import accepted_modes
from agent.cluster.metadata_object import ANNOTATION_PREFIX
from agent.host import installer
from agent.ipam.reservations import pod_annotations
from agent.kernel import tc
from agent.model import cluster, marks
from agent.modes import veth
from agent.modes.hostgw import HostGwOptions
from agent.modes.ipip import bgp
from agent.modes.ipip import device as ipip_device
from agent.modes.ipip import marks as ipip_marks
from agent.modes.ipip import mode as ipip_mode
from agent.modes.ipip.bird import types
from agent.modes.vxlan import maps as vxlan_maps
from agent.modes.vxlan import marks as vxlan_marks
from agent.modes.vxlan import mode
from agent.modes.vxlan.options import VxlanOptions
from agent.node import route_protocol
from agent.objects import nft_table, pod_guard
from tests.lab.space import REPO

TEXT = (REPO / "docs/marks.md").read_text()
ROW = re.compile(r"^\| ([^|]+) \| ([^|]*) \|", re.M)
CODE = re.compile(r"`([^`]+)`")
TUNNEL = VxlanOptions()


def source(file: str, pattern: str) -> str:
    found = re.search(pattern, (REPO / "ebpf" / file).read_text())
    assert found, (file, pattern)
    return found[1]


def option(name: str) -> str:
    return next(option.default or "" for option in options.OPTIONS if option.name == name)


MARKS: dict[str, tuple[object, ...]] = {
    "route protocol": (marks.ROUTE_PROTOCOL,),
    "route protocol of earlier versions": (route_protocol.FIRST_PROTOCOL,),
    "BIRD's routes, protocol": (types.KERNEL_PROTOCOL,),
    "BIRD's routes, metric": (types.METRIC,),
    "route metric while modes differ": (ipip_mode.SPARE,),
    "route metric of own blocks in the tunnel": (mode.LAST,),
    "packet mark": (source("common.h", r"#define MARK (\w+)"),),
    "conntrack": (),
    "policy rules and tables": (),
    "nft priority, postrouting": (nft_table.CHAIN["prio"],),
    "nft priority, tunnels": (nft_table.TUNNELS["prio"],),
    "nft priority, input, forward and output": (
        *{nft_table.INPUT["prio"], nft_table.FORWARD["prio"], nft_table.OUTPUT["prio"]},
    ),
    "tc filter priority": (tc.PRIORITY,),
    "tc filter handle": (tc.HANDLE,),
    "TCX programs at the underlay": tuple(ipip_device.PROGRAMS.values()),
    "TCX program at a pod's link": pod_guard.GUARD.programs,
    "link group of subinterfaces": (hex(int("f" * 7, 16) + 1),),
    "UDP port of the tunnel": (TUNNEL.port,),
    "VNI": (TUNNEL.vni,),
    "listener of metrics and health": (option("listen"),),
    "AS number": (types.DEFAULT_AS,),
    "BGP": (179,),
    "MAC of a pod": (marks.MAC_PREFIX,),
    "MAC of a bridge": (marks.BRIDGE_MAC_PREFIX,),
    "MAC of a host end": ("ee",),
    "MAC of the tunnel": (vxlan_maps.TUNNEL_MAC_PREFIX,),
    "MAC of senders in the tunnel": (
        ":".join(re.findall(r"0x(\w\w)", source("tunnel.h", r"\.source = \{([^}]+)\}"))),
    ),
    "gateway of pods with a /32": (veth.GATEWAY,),
    "links of pods": (marks.LINK_PREFIX,),
    "alias": (marks.ALIAS,),
    "bridge": (HostGwOptions().bridge,),
    "device of vxlan": (vxlan_marks.VXLAN_DEVICE,),
    "device of ipip": (ipip_marks.IPIP_DEVICE,),
    "nft table": (f"inet {marks.NFT_TABLE}",),
    "eBPF pins": (marks.BPF_PINS,),
    "conf": (installer.CONFLIST,),
    "socket and attachments": (option("run-dir"),),
    "journal": (option("state-dir"),),
    "API group": (cluster.API_VERSION,),
    "annotations": (ANNOTATION_PREFIX,),
    "label of reflectors": (bgp.REFLECTOR,),
}


def test_the_documented_marks_are_those_of_the_code() -> None:
    rows = {name: CODE.findall(value) for name, value in ROW.findall(TEXT) if name not in ("mark", "---")}
    assert rows == {name: list(map(str, those)) for name, those in MARKS.items()}


def test_the_annotations_begin_as_documented() -> None:
    ours = (pod_annotations.IP, pod_annotations.STICKY, pod_annotations.POOL, accepted_modes.ANNOTATION)
    assert all(name.startswith(ANNOTATION_PREFIX) for name in ours)
    (row,) = (line for line in TEXT.splitlines() if line.startswith("| annotations"))
    assert set(CODE.findall(row)) == {ANNOTATION_PREFIX, *(name.removeprefix(ANNOTATION_PREFIX) for name in ours)}


def test_no_number_for_routes_is_anothers() -> None:
    assert marks.ROUTE_PROTOCOL in options.ROUTE_PROTOCOLS
    assert marks.ROUTE_PROTOCOL not in {**options.REGISTERED, route_protocol.FIRST_PROTOCOL: "OVN"}
    for file in lists_of_protocols():
        registered = {int(line.split()[0], 0) for line in file.read_text().splitlines() if line[:1].isdigit()}
        assert marks.ROUTE_PROTOCOL not in registered, file


def lists_of_protocols() -> list[Path]:
    """The lists of route protocols of this machine's iproute2."""
    folders = (Path("/etc/iproute2"), Path("/usr/share/iproute2"))
    found = [folder / "rt_protos" for folder in folders] + [
        file for folder in folders for file in (folder / "rt_protos.d").glob("*.conf")
    ]
    return [file for file in found if file.exists()]
