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
from tests.lab.space import REPO

PORT = 9090
ANNOTATION = "__meta_kubernetes_pod_annotation_prometheus_io"


@pytest.fixture(scope="module")
def prometheus(cluster: Cluster) -> Iterator[str]:
    """Its URL, in the control plane's network; it looks for pods as its documentation says."""
    folder = cluster.control.folder
    kubeconfig = yaml.safe_load(cluster.control.kubeconfig().read_text())
    (folder / "token").write_text(kubeconfig["users"][0]["user"]["token"])
    relabel = [
        {"source_labels": [f"{ANNOTATION}_scrape"], "action": "keep", "regex": "true"},
        {"source_labels": [f"{ANNOTATION}_path"], "target_label": "__metrics_path__", "regex": "(.+)"},
        {
            "source_labels": ["__meta_kubernetes_pod_ip", f"{ANNOTATION}_port"],
            "target_label": "__address__", "regex": "(.+);(.+)", "replacement": "$1:$2",
        },
        {"source_labels": ["__meta_kubernetes_pod_node_name"], "target_label": "node"},
    ]  # fmt: skip
    discovery = {
        "role": "pod", "api_server": cluster.control.server,
        "authorization": {"credentials_file": str(folder / "token")},
        "tls_config": {"ca_file": str(folder / "certs/apiserver.crt")},
    }  # fmt: skip
    job = {"job_name": "pods", "kubernetes_sd_configs": [discovery], "relabel_configs": relabel}
    doc = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]}
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
    eventually(lambda: len(query(cluster, prometheus, "up == 1")) == len(cluster.nodes), 20)
    assert up[0]["metric"]["node"] in {node.name for node in cluster.nodes}


def test_every_metric_of_the_documentation_has_data(cluster: Cluster, prometheus: str) -> None:
    text = (REPO / "docs/metrics.md").read_text()
    names = sorted(set(re.findall(r"^\| `(testcni_\w+)`", text, re.MULTILINE)))
    assert len(names) > 10

    def missing() -> list[str]:
        return [name for name in names if not query(cluster, prometheus, f'{{__name__=~"{name}(_count)?"}}')]

    eventually(lambda: missing() == [], 15)


def test_calls_are_counted_by_verb_mode_and_result(cluster: Cluster, prometheus: str) -> None:
    calls = f'testcni_cni_request_duration_seconds_count{{verb="ADD",mode="{cluster.mode}",result="ok"}}'
    eventually(lambda: query(cluster, prometheus, f"{calls} > 0"), 15)
