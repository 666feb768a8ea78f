"""What is prepared outlives the agent; what can't be read counts for nothing."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest

from agent.model.network import ModeOptions, Network, ParentLink
from agent.model.node_status import NodeStatus
from agent.modes.parent.options import MACVLAN
from agent.node import ready_state_file
from tests.networks import OPTIONS, network_of

A = network_of("a", subnet=ipaddress.ip_network("10.244.0.0/16"))
LAN = network_of("c", mode=MACVLAN, subnet=ipaddress.ip_network("192.0.2.0/24"), link_mode="bridge")
PREPARED = NodeStatus(
    blocks={
        A: (ipaddress.ip_network("10.244.1.0/24"),),
        network_of("b", mtu=1400, range_start=ipaddress.ip_address("10.9.0.5")): (),
        LAN: (ipaddress.ip_network("192.0.2.64/28"),),
    },
    excluded={A: frozenset({ipaddress.ip_network("10.244.1.64/28")})},
    uplinks={
        LAN: ParentLink(
            "eth0",
            (ipaddress.ip_address("192.0.2.1"),),
            ipaddress.ip_address("192.0.2.254"),
            (ipaddress.ip_network("10.96.0.0/12"),),
            frozenset({ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.254")}),
        )
    },
)
NOTHING = NodeStatus()


class Warp(ModeOptions):
    """A mode of a later version."""

    mode = "warp"


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "prepared.json"
    assert ready_state_file.load(path, OPTIONS) == NOTHING
    assert ready_state_file.save(path, PREPARED)
    assert ready_state_file.load(path, OPTIONS) == PREPARED
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    assert ready_state_file.save(path, NOTHING)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 2}', '{"format": 1, "networks": [{}]}', "\0"])
def test_a_spoilt_file_is_told_and_counts_for_nothing(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "prepared.json"
    path.write_text(text)
    assert ready_state_file.load(path, OPTIONS) == NOTHING
    assert str(path) in caplog.text


@pytest.mark.parametrize("block", [True, 1, [], None])
def test_a_block_is_text(tmp_path: Path, block: object) -> None:
    """`true` is 0.0.0.1/32 for ipaddress."""
    path = tmp_path / "prepared.json"
    assert ready_state_file.save(path, PREPARED)
    for key in ("blocks", "withheld"):
        doc = json.loads(path.read_text())
        assert ready_state_file.load(path, OPTIONS) == PREPARED
        doc["networks"][0][key] = [block]
        (tmp_path / "wrong.json").write_text(json.dumps(doc))
        assert ready_state_file.load(tmp_path / "wrong.json", OPTIONS) == NOTHING


def test_an_uplink_by_which_no_host_is_known_counts_for_nothing(tmp_path: Path) -> None:
    """The test of the segment ended the agent at each start."""
    path = tmp_path / "prepared.json"
    ready_state_file.save(path, PREPARED)
    doc = json.loads(path.read_text())
    (uplink,) = (entry["uplink"] for entry in doc["networks"] if "uplink" in entry)
    uplink["hosts"] = []
    path.write_text(json.dumps(doc))
    assert ready_state_file.load(path, OPTIONS) == NOTHING


def test_a_mode_that_this_agent_does_not_know_counts_for_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "prepared.json"
    ready_state_file.save(path, NodeStatus(blocks={Network("a", Warp()): ()}))
    assert ready_state_file.load(path, OPTIONS) == NOTHING
    assert "mode 'warp' is none of host-gw" in caplog.text


def test_a_disk_that_can_not_be_written_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert ready_state_file.save(tmp_path / "missing" / "prepared.json", PREPARED), "no old note promises more"
    assert "can't be written" in caplog.text


def test_a_note_that_can_not_be_renewed_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prepared.json"
    ready_state_file.save(path, PREPARED)

    fewer = NodeStatus(blocks={A: ()})
    in_the_way = tmp_path / "prepared.json.new"
    in_the_way.mkdir()
    assert ready_state_file.save(path, fewer)
    assert ready_state_file.load(path, OPTIONS) == NOTHING
    in_the_way.rmdir()
    ready_state_file.save(path, PREPARED)

    def refused(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refused)
    assert not ready_state_file.save(path, fewer), "an old note is left, which promises a block that may go"
    assert ready_state_file.load(path, OPTIONS) == PREPARED
