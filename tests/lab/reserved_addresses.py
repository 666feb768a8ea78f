"""A lab whose agents look at annotations, and pods with a manifest: what tests of addresses that stay share."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.lab.lab import Lab, LabNode, Pod, lab
from tests.lab.matrix import ends, measure

STICKY = {"testcni.io/sticky": "true"}


@contextmanager
def staying(nodes: int, *options: str, **more: Any) -> Iterator[Lab]:
    """A lab with the feature on."""
    with lab(nodes, agents=False, **more) as it:
        start_agents(it, *options)
        yield it


def start_agents(it: Lab, *options: str) -> None:
    """Agents that read the annotations of pods."""
    it.each(lambda node: node.start_agent("--pod-annotations", "on", *options))
    it.each(LabNode.wait_ready)


def describe(it: Lab, name: str, annotations: Mapping[str, str], controller: str = "") -> None:
    """Write a Pod's manifest."""
    owners = {}
    if controller:
        kind, _, owner = controller.partition("/")
        owners = {"ownerReferences": [{"kind": kind, "name": owner, "controller": True}]}
    metadata = {"namespace": "default", "name": name, "annotations": dict(annotations), **owners}
    it.put(f"pod-{name}", {"apiVersion": "v1", "kind": "Pod", "metadata": metadata})


def add(node: LabNode, name: str, container: str = "") -> Pod:
    """A pod whose runtime says which it is. Raises RunnerError."""
    args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}"
    return node.add_pod(container or name, args=args)


def reservations(it: Lab) -> dict[str, dict[str, Any]]:
    """Return what is reserved: specs by address."""
    found = {}
    for path in it.datastore.glob("ipreservation-*.yaml"):
        try:
            spec = yaml.safe_load(Path(path).read_text())["spec"]
        except FileNotFoundError:
            continue
        found[spec["address"]] = spec
    return found


def converge(it: Lab, within: float) -> float:
    """Seconds until all pods and nodes reach all others, and pods the outside too; fails after `within`.

    The clock starts when each pod reaches its own node.
    """
    began, up = time.monotonic(), False
    while True:
        lacking = {(r.source, r.target) for r in measure(*ends(it)) if r.ms is None}
        took = time.monotonic() - began
        if not lacking:
            return took
        if not up and took < 2:
            up = all((f"{p.name} ({n.name})", n.name) not in lacking for n in it.nodes for p in n.pods.values())
            began = time.monotonic()
            continue
        assert took < within, lacking
