"""The nft table in a real kernel: what is written is what is found, and every change by others is seen."""

from __future__ import annotations

import ipaddress
import sys
from dataclasses import replace

import pytest

from agent.objects import nft_table
from agent.objects.state import Masquerade, NodeSnat, Shut
from tests.netns.node import command
from tests.support import ip, net

WANTED = Masquerade(
    frozenset({net("10.244.1.0/24"), net("2001:db8:1::/64")}),
    frozenset(map(net, ("10.244.0.0/16", "192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32", "2001:db8::/32"))),
)


def test_what_is_written_is_what_is_found() -> None:
    assert nft_table.write(WANTED)
    assert not nft_table.write(WANTED)
    assert command("nft", "list", "ruleset").count("masquerade") == 2


def test_detours_are_found_as_they_were_written() -> None:
    both = frozenset({
        NodeSnat(net("192.0.2.0/24"), ip("192.0.2.1")),
        NodeSnat(net("198.51.100.0/24"), ip("192.0.2.1"), everything=False),
    })  # fmt: skip
    wanted = Masquerade(WANTED.sources, WANTED.exempt, both)
    assert nft_table.write(wanted)
    assert not nft_table.write(wanted)
    assert command("nft", "list", "ruleset").count("snat ip to 192.0.2.1") == 4
    assert nft_table.write(WANTED)


def test_without_sources_there_is_no_table() -> None:
    assert not nft_table.write(Masquerade())
    nft_table.write(WANTED)
    assert nft_table.write(Masquerade())
    assert command("nft", "list", "ruleset") == ""


@pytest.mark.parametrize(
    "change",
    [
        "flush ruleset",
        "flush table inet testcni",
        "flush set inet testcni pods4",
        "add element inet testcni cluster4 { 203.0.113.0/24 }",
        "delete element inet testcni cluster4 { 192.0.2.1 }",
        "add rule inet testcni postrouting accept",
        "add chain inet testcni other",
        "add chain inet testcni postrouting { policy drop; }",
        "add table inet testcni { flags dormant; }",
    ],
)
def test_a_change_by_others_is_undone(change: str) -> None:
    nft_table.write(WANTED)
    before = command("nft", "list", "ruleset")
    command("nft", change)
    assert nft_table.write(WANTED)
    assert command("nft", "list", "ruleset") == before


def test_the_tables_of_others_stay() -> None:
    command("nft", "add table inet other")
    nft_table.write(WANTED)
    nft_table.write(Masquerade())
    assert "table inet other" in command("nft", "list", "ruleset")


def test_only_nodes_may_send_to_the_ipip_device_and_the_count_goes_on() -> None:
    senders = frozenset({ipaddress.IPv4Address("192.0.2.1"), ipaddress.IPv4Address("192.0.2.7")})
    assert nft_table.write(WANTED, {4: senders})
    assert not nft_table.write(WANTED, {4: senders})
    command("ip", "link", "set", "lo", "up")
    send = "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 4).sendto(bytes(20), ('127.0.0.1', 0))"
    for _ in range(3):
        command(sys.executable, "-c", send)
    assert nft_table.dropped(4) == 3
    assert nft_table.write(WANTED, {4: senders | {ipaddress.IPv4Address("192.0.2.8")}})
    assert nft_table.dropped(4) == 3
    assert nft_table.write(WANTED)
    assert nft_table.dropped(4) == 0
    assert nft_table.write(Masquerade(), {4: senders})
    assert nft_table.write(Masquerade())


@pytest.mark.parametrize(
    "rule",
    [
        "ip protocol { 4, 41 } counter packets 77 bytes 7777 drop",
        "ip protocol 1-4 counter drop",
        "ip protocol != 4 counter packets 77 bytes 7777 drop",
        "ip protocol 4 counter packets 77 bytes 7777 drop",
        "ip protocol 4 counter name others drop",
    ],
)
@pytest.mark.parametrize("verb", ["add", "insert"])
def test_a_rule_of_others_that_counts_is_removed_and_does_not_count(rule: str, verb: str) -> None:
    nft_table.write(WANTED, {4: frozenset()})
    before = command("nft", "list", "ruleset")
    command("nft", "add counter inet testcni others")
    command("nft", f"{verb} rule inet testcni input {rule}")
    assert nft_table.dropped(4) == 0
    assert nft_table.write(WANTED, {4: frozenset()})
    assert command("nft", "list", "ruleset") == before


def test_where_no_node_may_send_nobody_may() -> None:
    assert nft_table.write(WANTED, {4: frozenset()})
    assert not nft_table.write(WANTED, {4: frozenset()})
    assert nft_table.is_filtering(4, last_known=True)
    assert nft_table.write(WANTED)
    assert not nft_table.is_filtering(4, last_known=True)


def test_no_redirects_are_sent_by_bridges_with_guests() -> None:
    quiet = frozenset({"testcni0"})
    assert nft_table.write(WANTED, {}, quiet)
    assert not nft_table.write(WANTED, {}, quiet)
    assert 'oifname "testcni0" icmp type redirect drop' in command("nft", "list", "ruleset")
    assert nft_table.write(WANTED)
    assert "redirect" not in command("nft", "list", "ruleset")


def test_to_tunnels_nothing_goes_that_is_of_pods_or_was_translated() -> None:
    shut = Shut((8472, 4790), frozenset({"testcni0"}), to_pods=frozenset({"testcni-vxlan"}))
    assert nft_table.write(WANTED, {}, frozenset(), shut)
    assert not nft_table.write(WANTED, {}, frozenset(), shut)
    listed = command("nft", "list", "ruleset")
    assert listed.count("udp dport 8472") == listed.count("udp dport 4790") == 4
    assert listed.count('iifname "testcni0"') == 2
    assert "ip protocol" not in listed
    assert nft_table.write(WANTED, {}, frozenset(), replace(shut, bypassed=True))
    assert not nft_table.write(WANTED, {}, frozenset(), replace(shut, bypassed=True))
    assert command("nft", "list", "ruleset").count("ip saddr @pods4 drop") == 2
    assert "chain tunnels" in command("nft", "list", "ruleset")
    assert nft_table.write(Masquerade(), {}, frozenset(), replace(shut, bypassed=True)), "no pods are masqueraded"
    assert not nft_table.write(Masquerade(), {}, frozenset(), shut)
    assert nft_table.write(WANTED)
    assert "chain forward" not in command("nft", "list", "ruleset")
