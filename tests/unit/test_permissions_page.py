"""docs/reference/permissions.md says what the manifests give: rules, capabilities and admission policies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.lab.space import REPO

PAGE = (REPO / "docs/reference/permissions.md").read_text()
CODE = re.compile(r"`([^`]+)`")

Rights = set[tuple[str, str, frozenset[str]]]
"""API group, resource and verbs."""


def objects(path: str, kind: str) -> list[dict[str, Any]]:
    """Return the objects of a kind in a manifest."""
    return [doc for doc in yaml.safe_load_all((REPO / path).read_text()) if doc["kind"] == kind]


def rules(role: dict[str, Any]) -> Rights:
    """Return the rights that a ClusterRole gives. A rule with other keys, such as resourceNames, is an error."""
    found = set()
    for rule in role["rules"]:
        assert sorted(rule) == ["apiGroups", "resources", "verbs"]
        found |= {
            (group or "core", resource, frozenset(rule["verbs"]))
            for group in rule["apiGroups"]
            for resource in rule["resources"]
        }
    return found


def rows(text: str, columns: int) -> Iterator[list[str]]:
    """Yield the cells of the rows of the first table in a text, without its head."""
    table = re.search(r"^\|.*?(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    for line in table[0].splitlines()[2:] if table else ():
        cells = line.strip("| ").split(" | ")
        assert len(cells) == columns, line
        yield cells


def documented(page: str, role: str) -> Rights:
    """Return the rights in the table that follows the name of a ClusterRole."""
    return {
        (group.strip("`"), resource, frozenset(verbs.split(", ")))
        for group, resources, verbs, _reason in rows(page.partition(f"ClusterRole `{role}`")[2], 4)
        for resource in CODE.findall(resources)
    }


@pytest.mark.parametrize("manifest", ["base/rbac.yaml", "cleanup/cleanup.yaml"])
def test_the_page_has_the_rules_of_each_clusterrole(manifest: str) -> None:
    (role,) = objects(f"manifests/{manifest}", "ClusterRole")
    assert documented(PAGE, role["metadata"]["name"]) == rules(role)
    assert f"`manifests/{manifest}`" in PAGE


def test_no_other_manifest_gives_rights() -> None:
    role = re.compile(r"^kind: (Cluster)?Role$", re.MULTILINE)
    paths = (path for path in (REPO / "manifests").rglob("*.yaml") if role.search(path.read_text()))
    found = {str(path.relative_to(REPO / "manifests")) for path in paths}
    assert found == {"base/rbac.yaml", "cleanup/cleanup.yaml", "testcni.yaml"}, "testcni.yaml is rendered of base"


def test_the_page_has_the_capabilities_of_the_container() -> None:
    (daemonset,) = objects("manifests/base/daemonset.yaml", "DaemonSet")
    (container,) = daemonset["spec"]["template"]["spec"]["containers"]
    given = container["securityContext"]
    found = [name for row in rows(PAGE.partition("## On a node")[2], 2) for name in CODE.findall(row[0])]
    assert sorted(found) == sorted(given["capabilities"]["add"])
    assert given["capabilities"]["drop"] == ["ALL"]
    assert given["readOnlyRootFilesystem"], "the page says so"


def test_the_page_names_the_policies_of_agents() -> None:
    policies = objects("manifests/base/agents.yaml", "ValidatingAdmissionPolicy")
    (sentence,) = re.findall(r"ValidatingAdmissionPolicies \((.*?)\)", PAGE, re.DOTALL)
    assert re.findall(r"`([\w.]+\.testcni\.io)`", sentence) == [policy["metadata"]["name"] for policy in policies]


def test_a_right_that_is_missing_on_the_page_is_found() -> None:
    role = {"rules": [{"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list"]}]}
    page = (
        "The ClusterRole `a`:\n\n| group | resources | rights | for |\n|-|-|-|-|\n| core | %s | get, list | x |\n"
    )
    assert documented(page % "`pods`, `nodes`", "a") == rules(role)
    assert documented(page % "`pods`", "a") < rules(role)
    assert documented(page % "`pods`, `nodes`, `secrets`", "a") > rules(role)
