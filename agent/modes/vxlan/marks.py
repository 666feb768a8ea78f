"""The marks by which testcni recognises its vxlan device (docs/marks.md)."""

from __future__ import annotations

from agent.model.marks import ALIAS

VXLAN_DEVICE = "testcni-vxlan"
VXLAN_ALIAS = f"{ALIAS} vxlan port"
