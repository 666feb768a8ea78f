"""Connections between pods, nodes and Services: by address, by Service, by port of the node and by name."""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster import ON_THE_SUBNET, Cluster, ClusterNode, eventually
from tests.e2e.images import TESTCNI
from tests.e2e.workload import FETCH, HOST, TOOLBOX, container, daemonset, deployment, pod, service, web
from tests.lab.segment import OUTSIDE

Boxes = dict[str, dict[str, Any]]
ECHO = """
import http.server as h
class A(h.BaseHTTPRequestHandler):
    def do_GET(self):
        who = self.client_address[0].encode()
        self.send_response(200); self.send_header('Content-Length', str(len(who))); self.end_headers()
        self.wfile.write(who)
    def log_message(self, *_): pass
h.ThreadingHTTPServer(('', 80), A).serve_forever()
"""
DNS = """
import socket, struct, sys
names = dict(pair.split('=') for pair in sys.argv[1:])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 53))
while True:
    q, who = s.recvfrom(512)
    n, i = [], 12
    while q[i]: n.append(q[i+1:i+1+q[i]].decode()); i += q[i] + 1
    kind, = struct.unpack('!H', q[i+1:i+3]); a = names.get('.'.join(n)) if kind == 1 else None
    head = q[:2] + struct.pack('!HHHHH', 0x8580 | (0 if '.'.join(n) in names else 3), 1, bool(a), 0, 0)
    body = b'\\xc0\\x0c' + struct.pack('!HHIH', 1, 1, 5, 4) + socket.inet_aton(a) if a else b''
    s.sendto(head + q[12:i+5] + body, who)
"""


def ip(pod: dict[str, Any]) -> str:
    return str(pod["status"]["podIP"])


@pytest.fixture(scope="module")
def hosts(cluster: Cluster, toolboxes: None) -> Boxes:
    return {pod["spec"]["nodeName"]: pod for pod in cluster.running(HOST, len(cluster.nodes))}


@pytest.fixture(scope="module")
def services(cluster: Cluster, toolboxes: None) -> dict[str, Any]:
    """A Service with a NodePort over the toolboxes of all nodes, once each node's kube-proxy knows it."""
    cluster.apply(service("toolbox", 8000, 80, type="NodePort"))
    (made,) = (one for one in cluster.get("services") if one["metadata"]["name"] == "toolbox")
    spec: dict[str, Any] = made["spec"]
    port = spec["ports"][0]["nodePort"]
    for box in cluster.running(TOOLBOX, len(cluster.nodes)):
        for at in (f"{spec['clusterIP']}:8000", *(f"{node.address}:{port}" for node in cluster.nodes)):
            fetched(cluster, box, f"http://{at}")
    return spec


def fetched(cluster: Cluster, source: dict[str, Any], url: str, within: float = 20) -> str:
    """Return what a pod gets from a URL, as soon as it gets anything."""
    return eventually(lambda: cluster.exec(source, *FETCH, url).strip(), within)


def names(boxes: Boxes) -> set[str]:
    return {pod["metadata"]["name"] for pod in boxes.values()}


def test_pods_reach_pods_and_nodes_and_nodes_reach_pods(cluster: Cluster, boxes: Boxes) -> None:
    targets = [*map(ip, boxes.values()), *(node.address for node in cluster.nodes), OUTSIDE]
    script = "for a in {}; do ping -c1 -W2 $a >/dev/null || echo $a; done".format(" ".join(targets))
    for name, box in boxes.items():
        assert cluster.exec(box, "sh", "-c", script) == "", f"from the pod on {name}"
    for node in cluster.nodes:
        assert node.machine.exec("sh", "-c", script).stdout == "", f"from {node.name}"


def test_as_whom_pods_are_seen_inside_and_outside(cluster: Cluster, boxes: Boxes) -> None:
    outside = subprocess.Popen(cluster.outside.argv("python3", "-c", ECHO))
    inside = [
        pod("echo", {**container("python3", "-c", ECHO), "image": TESTCNI}, nodeName=cluster.nodes[0].name)
    ]  # fmt: skip
    try:
        cluster.apply(inside)
        (echo,) = cluster.running("app=echo", 1)
        for name, box in boxes.items():
            address = next(node.address for node in cluster.nodes if node.name == name)
            seen = ip(box) if cluster.mode in ON_THE_SUBNET else address  # there a router knows the way back
            assert fetched(cluster, box, f"http://{OUTSIDE}") == seen
            assert fetched(cluster, box, f"http://{ip(echo)}") == ip(box)
    finally:
        outside.kill()
        outside.wait()
        cluster.kubectl("delete", "pod", "echo", "--wait=false")


def test_the_api_server_by_cluster_ip(cluster: Cluster, boxes: Boxes) -> None:
    for box in boxes.values():  # busybox has none of the ciphers, so it is told that it should use one
        script = "timeout 3 wget -O- http://10.96.0.1:443/livez 2>&1 || true"
        assert "400 Bad Request" in cluster.exec(box, "sh", "-c", script)


def test_cluster_ip_and_node_port_from_everywhere(
    cluster: Cluster, boxes: Boxes, hosts: Boxes, services: dict[str, Any]
) -> None:
    port = services["ports"][0]["nodePort"]
    urls = [f"http://{services['clusterIP']}:8000", *(f"http://{node.address}:{port}" for node in cluster.nodes)]
    for url in urls:
        for source in (*boxes.values(), *hosts.values()):
            script = f"for i in 1 2 3 4 5 6 7 8; do {' '.join(FETCH)} {url} || echo failed; done"
            got = set(cluster.exec(source, "sh", "-c", script).split())
            assert got <= names(boxes), (source["metadata"]["name"], url)
        for node in cluster.nodes:
            assert node.machine.exec("curl", "-sSm2", url).stdout.strip() in names(boxes)
    outside = cluster.outside.exec("curl", "-sSm2", urls[1]).stdout.strip()
    assert outside in names(boxes)


def test_a_pod_reaches_itself_by_its_service(cluster: Cluster) -> None:
    cluster.apply([deployment("self", 1, web()), service("self", 80, 80)])
    (it,) = cluster.running("app=self", 1)
    (address,) = (s["spec"]["clusterIP"] for s in cluster.get("services") if s["metadata"]["name"] == "self")
    assert fetched(cluster, it, f"http://{address}") == it["metadata"]["name"]
    cluster.kubectl("delete", "deployment,service", "self", "--wait=false")


@pytest.fixture(scope="module")
def host_port(cluster: Cluster) -> Iterator[dict[str, Any]]:
    main = web()
    main["ports"] = [{"containerPort": 80, "hostPort": 8081}]
    cluster.apply(pod("hostport", main, nodeName=cluster.nodes[0].name))
    yield cluster.running("app=hostport", 1)[0]
    cluster.kubectl("delete", "pod", "hostport")


def test_host_port(cluster: Cluster, boxes: Boxes, hosts: Boxes, host_port: dict[str, Any]) -> None:
    url = f"http://{cluster.nodes[0].address}:8081"
    for source in (*boxes.values(), *hosts.values()):
        assert fetched(cluster, source, url) == "hostport"
    assert cluster.outside.exec("curl", "-sSm2", url).stdout.strip() == "hostport"


def test_a_host_port_is_free_again_at_once(cluster: Cluster, host_port: dict[str, Any]) -> None:
    """Stale conntrack entries would lead to the address of the pod that is gone."""
    url = f"http://{cluster.nodes[0].address}:8081"
    cluster.kubectl("delete", "pod", "hostport")
    main = web()
    main["ports"] = [{"containerPort": 80, "hostPort": 8081}]
    cluster.apply(pod("hostport", main, nodeName=cluster.nodes[0].name))
    cluster.running("app=hostport", 1)
    eventually(lambda: cluster.outside.exec("curl", "-sSm1", url, check=False).stdout.strip() == "hostport", 5)


def test_names_by_a_dns_service(cluster: Cluster, boxes: Boxes, services: dict[str, Any]) -> None:
    main = {**container("python3", "-c", DNS, f"toolbox.default.svc.cluster.local={services['clusterIP']}")}
    main["image"] = TESTCNI
    dns = service("dns", 53, 53, protocol="UDP", clusterIP="10.96.0.10")
    cluster.apply([deployment("dns", 1, main), dns])
    cluster.running("app=dns", 1)
    for box in boxes.values():
        assert fetched(cluster, box, "http://toolbox:8000") in names(boxes)


def test_exec_logs_port_forward(cluster: Cluster, boxes: Boxes) -> None:
    box = next(iter(boxes.values()))
    name = box["metadata"]["name"]
    assert cluster.exec(box, "hostname").strip() == name
    cluster.apply(pod("talker", container("sh", "-c", "echo said; sleep 1000")))
    cluster.running("app=talker", 1)
    assert eventually(lambda: cluster.kubectl("logs", "talker"), 5) == "said\n"
    argv = cluster.space.argv(*cluster.control.kubectl_argv("port-forward", f"pod/{name}", "8099:80"))
    forward = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        got = eventually(lambda: cluster.space.exec("curl", "-sSm2", "http://127.0.0.1:8099").stdout, 10)
        assert got.strip() == name
    finally:
        forward.kill()
        forward.wait()
        cluster.kubectl("delete", "pod", "talker", "--wait=false")


def test_liveness_probes_reach_pods(cluster: Cluster) -> None:
    main = web()
    main["livenessProbe"] = {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1, "timeoutSeconds": 2}
    main["readinessProbe"] = {"tcpSocket": {"port": 80}, "periodSeconds": 1}
    cluster.apply(daemonset("probed", main))
    cluster.running("app=probed", len(cluster.nodes))
    time.sleep(10)  # three that get no answer would have it restarted
    for it in cluster.pods("app=probed"):
        assert it["status"]["containerStatuses"][0]["restartCount"] == 0
    first = cluster.pods("app=probed")[0]
    cluster.exec(first, "rm", "/tmp/www/index.html")  # noqa: S108
    eventually(lambda: restarts(cluster, first) > 0, 30)
    cluster.kubectl("delete", "daemonset", "probed", "--wait=false")


def restarts(cluster: Cluster, pod: dict[str, Any]) -> int:
    found = cluster.get("pods", "--field-selector", f"metadata.name={pod['metadata']['name']}")
    return int(found[0]["status"]["containerStatuses"][0]["restartCount"])


def test_links_tell_whose_they_are(cluster: Cluster, boxes: Boxes) -> None:
    for name, box in boxes.items():
        node = next(node for node in cluster.nodes if node.name == name)
        aliases = node.machine.exec("ip", "-d", "link").stdout
        assert f"default/{box['metadata']['name']}" in aliases


def test_a_bandwidth_annotation_limits(cluster: Cluster, one: ClusterNode) -> None:
    if cluster.mode in ("vxlan", *ON_THE_SUBNET):
        pytest.skip("packets go past the queues that the bandwidth plugin sets, so it is not in the conflist")
    doc = pod("slow", container("sleep", "1000"), nodeName=one.name)
    doc["metadata"]["annotations"] = {"kubernetes.io/ingress-bandwidth": "10M"}
    cluster.apply(doc)
    try:
        cluster.running("app=slow", 1)
        assert "tbf" in one.machine.exec("tc", "qdisc").stdout
    finally:
        cluster.kubectl("delete", "pod", "slow", "--wait=false")


def test_every_pod_has_its_own_address(cluster: Cluster, boxes: Boxes) -> None:
    addresses = [ip(pod) for pod in cluster.get("pods", "-A") if not pod["spec"].get("hostNetwork")]
    assert len(addresses) == len(set(addresses))
    assert len(list(itertools.combinations(addresses, 2))) > 0
