"""An API server alone that knows the project's kinds: for what needs no node."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.control import ControlPlane
from tests.lab.space import REPO

MANIFESTS = REPO / "manifests/base"
KINDS = ("ippools", "ipblocks", "ipreservations", "ipblockusages")


@contextmanager
def api_server(folder: Path, *manifests: str) -> Iterator[ControlPlane]:
    """A control plane without controllers, with the kinds established and more of the base's manifests applied."""
    it = ControlPlane(folder)
    try:
        it.start(controllers=False)
        it.kubectl("apply", "-f", str(MANIFESTS / "crds.yaml"))
        it.kubectl("wait", "--for=condition=Established", *(f"crd/{kind}.testcni.io" for kind in KINDS))
        for name in manifests:
            it.kubectl("apply", "-f", str(MANIFESTS / f"{name}.yaml"))
        yield it
    finally:
        it.stop()


def apply(control: ControlPlane, doc: Mapping[str, Any]) -> None:
    """Create or change an object, as the admin."""
    control.kubectl("apply", "-f", "-", stdin=json.dumps(doc))
