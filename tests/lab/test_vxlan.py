"""The mode vxlan in the lab: what the programs count of packets that are well."""

from __future__ import annotations

from tests.lab import matrix
from tests.lab.lab import VXLAN_CONF, lab
from tests.lab.talk import counters


def test_nothing_is_dropped_and_all_is_counted() -> None:
    with lab(3, conf=VXLAN_CONF) as it:
        it.each(lambda node: [node.add_pod(f"{node.name}-{n}") for n in range(2)])
        assert [reach for reach in matrix.measure(*matrix.ends(it)) if reach.ms is None] == []
        for node in it.nodes:
            counted = counters(node)
            assert counted["forwarded_local"] > 0
            assert counted["forwarded_remote"] > 0
            assert counted["from_stack"] > 0
            drops = {name: number for name, number in counted.items() if name.startswith("drop") and number}
            assert drops.keys() <= {"drop_not_ip"}, "IPv6 of pods that look for routers"
            told = node.ask()["ebpf"]["forwarded_local"]
            assert told["packets"] >= counted["forwarded_local"]
            assert told["bytes"] > told["packets"] * 14
