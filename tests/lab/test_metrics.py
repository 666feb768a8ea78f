"""Metrics and health of a whole agent: what probes and Prometheus see of a node that becomes ready and works."""

from __future__ import annotations

import json
import sys

from prometheus_client.parser import text_string_to_metric_families

from agent.model.marks import ROUTE_PROTOCOL
from tests.lab.lab import LabNode, lab
from tests.support import eventually

FETCH = """
import sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen("http://127.0.0.1:9480" + sys.argv[1], timeout=5)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status)
print(answer.read().decode(), end="")
"""


def get(node: LabNode, path: str) -> tuple[int, str]:
    done = node.space.exec(sys.executable, "-c", FETCH, path, check=False)
    status, _, body = done.stdout.partition("\n")
    return int(status or 0), body


def value(node: LabNode, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(get(node, "/metrics")[1]):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return None


def test_a_node_from_unready_to_at_work() -> None:
    with lab(2, agents=False) as it:
        one, two = it.nodes
        it.delete_node(one)
        one.start_agent()
        two.start_agent()
        two.wait_ready()
        eventually(lambda: get(one, "/healthz") == (200, "ok\n"))
        eventually(lambda: "has no Node object" in get(one, "/readyz")[1])
        status, why = get(one, "/readyz")
        assert status == 503
        assert why.startswith("network testcni (host-gw) is not prepared\n")
        it.put_node(one)
        eventually(lambda: get(one, "/readyz") == (200, "ok\n"))
        pod = one.add_pod("a")
        call = {"verb": "ADD", "mode": "host-gw", "result": "ok"}
        assert value(one, "testcni_cni_request_duration_seconds_count", **call) == 1
        assert value(one, "testcni_addresses", network="testcni", family="ipv4", state="used") == 1
        assert value(one, "testcni_attachments") == 1
        assert value(one, "testcni_nodes") == 2
        assert value(one, "testcni_peers") == 1
        eventually(lambda: value(one, "testcni_routes_programmed") == value(one, "testcni_routes_desired") == 1)
        one.space.exec("ip", "route", "flush", "proto", str(ROUTE_PROTOCOL))
        eventually(lambda: value(one, "testcni_drift_repaired_total", kind="routes") == 1)
        one.delete_pod(pod)
        assert value(one, "testcni_addresses", network="testcni", family="ipv4", state="cooling") == 1
        assert value(one, "process_open_fds")
        told = json.loads(get(one, "/status")[1])
        assert {k: told[k] for k in ("node", "synced", "problems")} == {
            k: one.ask()[k] for k in ("node", "synced", "problems")
        }
        assert get(one, "/")[0] == 404


def test_an_agent_whose_port_is_taken_works_and_says_so() -> None:
    with lab(1, agents=False) as it:
        (node,) = it.nodes
        node.start_agent("--listen", "192.0.2.77:9480")  # not an address of the node
        node.wait_ready()
        eventually(lambda: "--listen 192.0.2.77:9480" in str(node.ask()["problems"]))
        assert node.add_pod("a").address == "10.244.1.2"
