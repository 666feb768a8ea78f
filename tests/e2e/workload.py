"""Pods, Deployments and Services that the tests run in the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.e2e.images import BUSYBOX

TOOLBOX = "app=toolbox"
HOST = "app=host"
FETCH = ("timeout", "3", "wget", "-q", "-O-")  # Debian's wget -T crashes
Doc = dict[str, Any]


def container(*command: str, **more: Any) -> Doc:
    """A container of busybox."""
    return {"name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": list(command), **more}


def pod(name: str, main: Doc, *, labels: Mapping[str, str] | None = None, **spec: Any) -> Doc:
    """A pod that ends at once on SIGTERM."""
    metadata = {"name": name, "labels": dict(labels or {"app": name})}
    body = {"terminationGracePeriodSeconds": 0, "containers": [main], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": body}


def deployment(name: str, replicas: int, main: Doc, **spec: Any) -> Doc:
    """Pods with the label app=`name`."""
    template = pod(name, main, **spec)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": template["spec"]},
        },
    }


def daemonset(name: str, main: Doc, **spec: Any) -> Doc:
    """A pod on each node."""
    doc = deployment(name, 0, main, tolerations=[{"operator": "Exists"}], **spec)
    doc["kind"] = "DaemonSet"
    del doc["spec"]["replicas"]
    return doc


def service(name: str, port: int, target: int, *, app: str = "", protocol: str = "TCP", **spec: Any) -> Doc:
    """A Service in front of the pods with the label app=`app`."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "selector": {"app": app or name},
            "ports": [{"port": port, "targetPort": target, "protocol": protocol}],
            **spec,
        },
    }


def web(*, port: int = 80) -> Doc:
    """A container that answers HTTP with the name of its pod; it ends on SIGTERM."""
    serve = f"httpd -f -p {port} -h /tmp/www & trap 'exit 0' TERM; wait"
    script = f"mkdir -p /tmp/www && hostname > /tmp/www/index.html && {serve}"
    return container("sh", "-c", script, ports=[{"containerPort": port}])


def toolbox() -> Sequence[Doc]:
    """On each node a pod that serves HTTP and has tools, and one of the same in the node's network."""
    host = daemonset("host", container("sleep", "36000"), hostNetwork=True)
    return [daemonset("toolbox", web()), host]
