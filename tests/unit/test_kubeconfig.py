"""A kubeconfig turns a protection off only where it says so: what client-go refuses is refused here, too."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.config import ConfigException

from agent.cluster import api
from agent.cluster.api import Api, ApiError, Request

SKIP = "insecure-skip-tls-verify"


def kubeconfig(path: Path, cluster: dict[str, Any], user: dict[str, Any] | None = None) -> Path:
    doc = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "one", "user": "me"}}],
        "clusters": [{"name": "one", "cluster": {"server": "https://127.0.0.1:1", **cluster}}],
        "users": [{"name": "me", "user": {"token": "secret", **(user or {})}}],
    }
    path.write_text(yaml.safe_dump(doc))
    return path


@pytest.mark.parametrize(("cluster", "verified"), [({}, True), ({SKIP: False}, True), ({SKIP: True}, False)])
def test_the_certificate_is_verified_unless_the_kubeconfig_says_otherwise(
    tmp_path: Path, cluster: dict[str, Any], verified: bool
) -> None:
    assert api.from_kubeconfig(kubeconfig(tmp_path / "config", cluster)).verify_ssl is verified


@pytest.mark.parametrize("value", ["false", "true", "no", "", 0, 1, [], {"a": 1}])
def test_a_switch_that_is_no_boolean_is_refused_and_verification_stays_on(tmp_path: Path, value: object) -> None:
    path = kubeconfig(tmp_path / "config", {SKIP: value})
    with pytest.raises(ConfigException, match=f"cluster 'one': {SKIP} is .*, neither true nor false; write it"):
        api.from_kubeconfig(path)
    with pytest.raises(ApiError, match=str(path)):
        Api(partial(api.from_kubeconfig, path)).ask(Request("GET", "/version"))


@pytest.mark.parametrize("server", ["127.0.0.1:6443", "HTTPS://127.0.0.1:6443", "", 6443])
def test_a_server_without_a_scheme_is_refused_as_it_would_be_plain_http(tmp_path: Path, server: object) -> None:
    with pytest.raises(ConfigException, match="does not begin with https://"):
        api.from_kubeconfig(kubeconfig(tmp_path / "config", {"server": server}))


def test_whether_a_program_for_credentials_is_told_the_cluster_is_a_boolean(tmp_path: Path) -> None:
    asked = {"apiVersion": "client.authentication.k8s.io/v1", "command": "true", "provideClusterInfo": "false"}
    with pytest.raises(ConfigException, match=r"user 'me': exec\.provideClusterInfo is 'false'"):
        api.from_kubeconfig(kubeconfig(tmp_path / "config", {}, {"exec": asked}))
