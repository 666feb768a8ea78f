"""What `testcnictl status` says of BIRD."""

from __future__ import annotations

from typing import Any

from agent import ctl
from agent.modes.ipip.bird.types import BirdStatus, Session, State
from agent.modes.ipip.metrics import bgp, summary

DOC: dict[str, Any] = {
    "node": "one", "synced": True, "problems": [], "nodes": 3, "routes": 0, "attachments": 0, "uptimeSeconds": 1,
    "datastore": "dir:/x", "networks": [],
}  # fmt: skip
STATUS = BirdStatus(
    running=True,
    version="2.0.12",
    pid=7,
    starts=1,
    sessions=(
        Session("three", State.ACTIVE, error="Socket: Connection refused"),
        Session("two", State.ESTABLISHED, 1, 1),
    ),
    kernel_routes=2,
)  # fmt: skip


def test_without_bird_there_is_nothing_to_say() -> None:
    assert bgp(BirdStatus()) is None
    assert list(summary(BirdStatus())) == []
    assert "BIRD" not in ctl.render({**DOC, "summaries": []}, colour=False)
    assert "BIRD" not in ctl.render(DOC, colour=False)


def test_sessions() -> None:
    told = bgp(STATUS)
    assert told
    assert told["sessionsByState"] == {"Active": 1, "Established": 1}
    assert told["sessions"][0] == {
        "peer": "three",
        "state": "Active",
        "imported": 0,
        "exported": 0,
        "error": "Socket: Connection refused",
    }
    shown = ctl.render({**DOC, "summaries": list(summary(STATUS))}, colour=False)
    assert "  BIRD 2.0.12: 2 routes in the kernel, sessions: 1 Active, 1 Established" in shown
