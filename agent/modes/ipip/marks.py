"""The marks by which testcni recognises its ipip device (docs/marks.md)."""

from __future__ import annotations

from agent.model.marks import ALIAS

IPIP_DEVICE = "testcni-ipip"
IPIP_ALIAS = f"{ALIAS} ipip"
