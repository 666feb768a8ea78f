"""Who may speak by a pod's port: what a netconf says of it, and which devices wait for the program."""

from __future__ import annotations

import json

import pytest

from agent.codec.network_json import decode_network, encode_network
from agent.errors import CniError
from agent.objects.pod_guard import GuardedPort
from tests.netns.node import CONF
from tests.networks import OPTIONS, parse_conf
from tests.support import ip


def test_spoof_check_is_on_unless_the_netconf_says_otherwise_and_is_kept_with_the_pod() -> None:
    assert parse_conf(CONF).network.spoof_check
    free = parse_conf({**CONF, "spoofCheck": False}).network
    assert not free.spoof_check
    kept = json.loads(json.dumps(encode_network(free)))
    assert decode_network(kept, OPTIONS) == free
    earlier = {key: value for key, value in kept.items() if key != "spoof_check"}
    assert decode_network(earlier, OPTIONS).spoof_check, "a pod of a version that knew no such field is checked"
    with pytest.raises(CniError, match="spoofCheck"):
        parse_conf({**CONF, "spoofCheck": "no"})


@pytest.mark.parametrize(
    ("rates", "limited"), [({}, False), ({"ingressRate": 1}, False), ({"egressRate": 1}, True)]
)
def test_an_egress_limit_is_known_by_the_capability(rates: dict[str, int], limited: bool) -> None:
    doc = {**CONF, "capabilities": {"bandwidth": True}, "runtimeConfig": {"bandwidth": rates}}
    assert parse_conf(doc).limited == limited


def test_pods_may_share_an_address_but_not_an_entry() -> None:
    one, other = (
        GuardedPort(name, "0a:58:0a:f4:01:02", (ip("10.244.1.2"), ip("fd00::2"))) for name in ("c1", "c2")
    )
    assert len(one.keys | other.keys) == 4
    assert one.entry != other.entry
