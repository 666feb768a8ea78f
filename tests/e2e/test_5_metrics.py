"""A real Prometheus finds the agents by their annotations, and data for every metric that is documented."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from tests.e2e.cluster import Cluster, eventually
from tests.lab.space import REPO, SpaceError

PORT = 9090
ANNOTATION = "prometheus.io"


def targets(cluster: Cluster) -> list[dict[str, Any]]:
    """Return targets by the pods' annotations, which Debian's Prometheus cannot discover by itself."""
    found = []
    for pod in cluster.get("pods", "-A"):
        says = pod["metadata"].get("annotations", {})
        if says.get(f"{ANNOTATION}/scrape") == "true":
            labels = {"__metrics_path__": says[f"{ANNOTATION}/path"], "node": pod["spec"]["nodeName"]}
            address = f"{pod['status']['podIP']}:{says[f'{ANNOTATION}/port']}"
            found.append({"targets": [address], "labels": labels})
    return found


@pytest.fixture(scope="module")
def prometheus(cluster: Cluster) -> Iterator[str]:
    """Its URL, in the control plane's network."""
    folder = cluster.control.folder
    job = {"job_name": "pods", "file_sd_configs": [{"files": [f"{folder}/targets.json"]}]}
    doc = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]}
    (folder / "targets.json").write_text(json.dumps(targets(cluster)))
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(doc))
    argv = (
        "prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/tsdb",
        f"--web.listen-address=127.0.0.1:{PORT}",
    )  # fmt: skip
    program = cluster.control.run("prometheus", argv)
    yield f"http://127.0.0.1:{PORT}/api/v1/query?query="
    program.kill()
    program.wait()


def query(cluster: Cluster, url: str, text: str) -> list[dict[str, Any]]:
    answer = json.loads(cluster.space.exec("curl", "-sSfm5", url + quote(text)).stdout)
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def test_both_agents_are_scraped(cluster: Cluster, prometheus: str) -> None:
    up = eventually(lambda: [one for one in query(cluster, prometheus, "up == 1") if len(one)], 30)
    eventually(lambda: len(query(cluster, prometheus, "up == 1")) == len(cluster.nodes), 60)
    assert up[0]["metric"]["node"] in {node.name for node in cluster.nodes}


def test_every_metric_of_the_documentation_has_data(cluster: Cluster, prometheus: str) -> None:
    text = (REPO / "docs/reference/metrics.md").read_text()
    names = sorted(set(re.findall(r"^\| `(testcni_\w+)`", text, re.MULTILINE)))
    assert len(names) > 10

    def complete() -> bool:  # a scrape that takes too long takes back what only that agent has
        missing = [n for n in names if not query(cluster, prometheus, f'{{__name__=~"{n}(_count)?"}}')]
        if missing:
            raise SpaceError(f"no data for {missing}")
        return True

    eventually(lambda: query(cluster, prometheus, "testcni_build_info"), 15)
    eventually(complete, 30)


def test_calls_are_counted_by_verb_mode_and_result(cluster: Cluster, prometheus: str) -> None:
    calls = f'testcni_cni_request_duration_seconds_count{{verb="ADD",mode="{cluster.mode}",result="ok"}}'
    eventually(lambda: query(cluster, prometheus, f"{calls} > 0"), 15)
