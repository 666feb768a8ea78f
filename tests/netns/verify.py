"""`make ebpf`: loads the objects, away from those in force, and prints what the verifier made of each program."""

from __future__ import annotations

import os
import sys

from agent.kernel.bpf.loader import Loader
from agent.kernel.bpf.syscall import BpfError
from agent.model.marks import BPF_PINS
from agent.modes.ipip import maps as ipip_maps
from agent.modes.vxlan import maps as vxlan_maps
from agent.objects import pod_guard
from tests.netns.node import OBJECTS, private_bpffs

FAMILIES = (vxlan_maps.FAMILY, ipip_maps.FAMILY, pod_guard.GUARD)


def main() -> int:
    if os.geteuid() != 0:
        print(f"{OBJECTS}: built; the verifier needs root")
        return 0
    try:
        private_bpffs()
        loader = Loader(OBJECTS, BPF_PINS)
        loaded = [loader.load(family) for family in FAMILIES]
    except BpfError as error:
        print(f"{error}\n{error.remedy}", file=sys.stderr)
        return 1
    print(f"verified by Linux {os.uname().release}")
    print(f"{'program':<15}{'instructions':>14}{'looked at by the verifier':>28}")
    for program in (program for one in loaded for program in one.programs.values()):
        print(f"{program.name:<15}{program.size // 8:>14}{program.verified or 'not told':>28}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
