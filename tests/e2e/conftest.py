"""One cluster for all tests of a run, in the order of the files: from bare nodes to bare nodes again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.api import api_server
from tests.e2e.cluster import DEFAULT, Cluster, ClusterNode
from tests.e2e.control import ControlPlane
from tests.e2e.workload import TOOLBOX, toolbox

MODE = os.environ.get("MODE", DEFAULT)
PROXY = os.environ.get("PROXY", "iptables")
NODES = 2


@pytest.fixture(scope="session")
def rights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server alone that binds agents to their nodes: it takes half a minute until it does."""
    with api_server(tmp_path_factory.mktemp("rights"), "admission", "agents", "rbac") as it:
        yield it


@pytest.fixture(scope="session")
def bare() -> Iterator[Cluster]:
    """Nodes without a network; what each of them was like is in `before`."""
    with Cluster(MODE, PROXY) as it:
        began = time.monotonic()
        it.up(NODES)
        it.before = {node.name: node.state() for node in it.nodes}
        print(f"{NODES} nodes without a network after {time.monotonic() - began:.1f} s")
        yield it


@pytest.fixture(scope="session")
def cluster(bare: Cluster) -> Cluster:
    """With testcni, and every node takes pods."""
    if not bare.get("daemonsets", "-n", "testcni"):
        bare.install()
    bare.all_ready()
    return bare


@pytest.fixture(scope="session")
def toolboxes(cluster: Cluster) -> None:
    """A pod with tools on each node: see `boxes`."""
    cluster.apply(toolbox())


@pytest.fixture
def boxes(cluster: Cluster, toolboxes: None) -> dict[str, dict[str, Any]]:
    """The pod with tools on each node, by the node's name; a node that boots gives it a new address."""
    return {pod["spec"]["nodeName"]: pod for pod in cluster.running(TOOLBOX, NODES)}


@pytest.fixture(scope="session")
def one(cluster: Cluster) -> ClusterNode:
    return cluster.nodes[0]


@pytest.fixture(scope="session")
def two(cluster: Cluster) -> ClusterNode:
    return cluster.nodes[1]
