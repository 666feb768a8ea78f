"""The runtime's conf folder: which networks it names, and which files are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.cni import conflist
from agent.host import cni_conf_dir
from agent.modes.hostgw import HostGwOptions
from agent.modes.registry import BUILT_IN

MAC = "02:11:22:33:44:55"
OURS = {"cniVersion": "1.0.0", "name": "net", "type": "testcni", "subnet": "10.244.0.0/16"}


def test_confs_and_conflists_of_ours_are_found_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "10-a.conf").write_text(json.dumps({**OURS, "cniVersion": "0.3.0"}))
    plugins = [{"type": "testcni", "bridge": "br1"}, {"type": "portmap", "capabilities": {"portMappings": True}}]
    (tmp_path / "20-b.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": "two", "plugins": plugins}))
    (tmp_path / "30-c.conf").write_text('{"name": "other", "type": "bridge"')
    (tmp_path / "README").write_text("testcni {")
    found = cni_conf_dir.read(tmp_path, modes=BUILT_IN)
    assert sorted((n.name, HostGwOptions.of(n).bridge) for n in found.networks) == [
        ("net", "testcni0"),
        ("two", "br1"),
    ]
    assert found.problems == ()


def test_a_wrong_file_is_named_and_the_others_count(tmp_path: Path) -> None:
    (tmp_path / "10.conf").write_text(json.dumps({**OURS, "mtu": 5}))
    (tmp_path / "20.conf").write_text(json.dumps(OURS))
    (tmp_path / "30.conflist").write_text('{"name": "x", "plugins": [5], "a": "testcni"}')
    found = cni_conf_dir.read(tmp_path, modes=BUILT_IN)
    assert len(found.networks) == 1
    assert [(p.where, p.what.split(":")[0]) for p in found.problems] == [
        (str(tmp_path / "10.conf"), "mtu"),
        (str(tmp_path / "30.conflist"), "plugins"),
    ]


def test_a_missing_folder_and_a_template(tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.write_text(json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": [OURS]}))
    assert cni_conf_dir.read(tmp_path / "none", modes=BUILT_IN) == cni_conf_dir.Confs()
    assert len(cni_conf_dir.read(tmp_path / "none", template, modes=BUILT_IN).networks) == 1


def test_a_file_that_runtimes_refuse_is_named(tmp_path: Path) -> None:
    conflist = {"cniVersion": "1.0.0", "name": "net", "plugins": [OURS]}
    for name, doc in {
        "10.conf": conflist,
        "20.conflist": OURS,
        "30.conf": {"name": "net", "type": "testcni"},
    }.items():
        (tmp_path / name).write_text(json.dumps(doc))
    found = cni_conf_dir.read(tmp_path, modes=BUILT_IN)
    assert found.networks == frozenset()
    assert [problem.where for problem in found.problems] == [str(path) for path in sorted(tmp_path.iterdir())]
    assert "is a conflist, which runtimes load only from a file *.conflist (rename it)" in str(found.problems[0])
    assert "has no list `plugins`" in str(found.problems[1])


def test_a_mac_that_tuning_sets_after_testcni_is_known(tmp_path: Path) -> None:
    def found(*plugins: dict[str, object]) -> dict[str, str]:
        doc = {"name": "pods", "cniVersion": "1.1.0", "plugins": list(plugins)}
        (tmp_path / "10-pods.conflist").write_text(json.dumps(doc))
        return dict(cni_conf_dir.read(tmp_path, modes=BUILT_IN).foreign_macs)

    ours: dict[str, object] = {"type": "testcni"}
    tuning: dict[str, object] = {"type": "tuning", "mac": "02:11:22:33:44:55"}
    assert found(ours, tuning) == {"pods": "02:11:22:33:44:55"}
    assert found(tuning, ours) == {}
    assert found(ours, {"type": "tuning", "sysctl": {}}) == {}
    assert found(ours, {**tuning, "mac": ""}) == {}


@pytest.mark.parametrize(
    "asks",
    [
        {"MAC": MAC},
        {"Mac": MAC, "mac": ""},
        {"args": {"cni": {"mac": MAC}}},
        {"ARGS": {"Cni": {"MAC": MAC}}},
        {"arg\u017f": {"cni": {"mac": MAC}}},
        {"runtimeConfig": {"mac": MAC}},
        {"runtimeconfig": {"Mac": MAC.upper()}},
        {"mac": MAC, "runtimeConfig": {"mac": MAC.upper()}},
    ],
)
def test_a_mac_is_known_by_whichever_way_tuning_is_given_it(asks: dict[str, object]) -> None:
    plugins = [{"type": "testcni"}, {"type": "tuning", **asks}]
    doc = {"name": "pods", "cniVersion": "1.1.0", "plugins": plugins}
    found = cni_conf_dir.of(conflist.conflist(json.dumps(doc).encode(), Path("/nonexistent")), modes=BUILT_IN)
    assert dict(found.foreign_macs) == {"pods": MAC}


def test_of_several_macs_none_is_taken_for_the_pods(tmp_path: Path) -> None:
    tuning = {"type": "tuning", "mac": MAC, "args": {"cni": {"mac": "02:11:22:33:44:66"}}}
    doc = {"name": "pods", "cniVersion": "1.1.0", "plugins": [{"type": "testcni"}, tuning]}
    (tmp_path / "10-pods.conflist").write_text(json.dumps(doc))
    assert cni_conf_dir.read(tmp_path, modes=BUILT_IN).foreign_macs["pods"] == f"{MAC}, 02:11:22:33:44:66"


def test_a_conflist_that_gives_macs_to_tuning_only_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "10-pods.conflist"

    def found(*plugins: dict[str, object]) -> list[str]:
        path.write_text(json.dumps({"name": "pods", "cniVersion": "1.1.0", "plugins": list(plugins)}))
        read = cni_conf_dir.read(tmp_path, modes=BUILT_IN)
        assert [network.name for network in read.networks] == ["pods"]
        return [str(problem) for problem in read.problems]

    mac = {"capabilities": {"mac": True}}
    (problem,) = found({"type": "testcni"}, {"type": "tuning", **mac})
    assert problem.startswith(f"{path}: tuning has the capability `mac` and testcni has not")
    assert '"capabilities": {"mac": true}' in problem
    assert found({"type": "testcni"}, {"type": "tuning", "Capabilities": {"mac": True}})
    assert found({"type": "testcni", "capabilities": {"ips": True}}, {"type": "other", **mac})
    assert not found({"type": "testcni", **mac}, {"type": "tuning", **mac})
    assert not found({"type": "testcni"}, {"type": "tuning", "capabilities": {"mac": False}})
    assert not found({"type": "tuning", **mac}, {"type": "testcni"})


def test_an_egress_limit_after_testcni_is_known(tmp_path: Path) -> None:
    def found(*plugins: dict[str, object]) -> bool | None:
        doc = {"name": "pods", "cniVersion": "1.1.0", "plugins": list(plugins)}
        (tmp_path / "10-pods.conflist").write_text(json.dumps(doc))
        return cni_conf_dir.read(tmp_path, modes=BUILT_IN).egress_limits.get("pods")

    ours: dict[str, object] = {"type": "testcni"}
    told: dict[str, object] = {**ours, "capabilities": {"bandwidth": True}}
    bandwidth: dict[str, object] = {"type": "bandwidth"}
    capable: dict[str, object] = {**bandwidth, "capabilities": {"bandwidth": True}}
    assert found(ours, capable) is False, "testcni is not told which pods"
    assert found({**ours, "capabilities": {"bandwidth": False}}, {**capable, "type": "shaper"}) is False
    assert found(told, capable) is None, "the runtime says so pod by pod"
    assert found(told, {**capable, "egressRate": 1000}) is True
    assert found(ours, {**bandwidth, "EgressRate": 1000}) is True
    assert found(ours, {**bandwidth, "ingressRate": 1000}) is None
    assert found(ours, bandwidth) is None
    assert found(capable, ours) is None
    assert found({**bandwidth, "egressRate": 1000}, ours) is None
