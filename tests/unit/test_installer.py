"""The installer: whole files only, the conflist last, nothing foreign touched, and nothing left after it."""

from __future__ import annotations

import ipaddress
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent.host import cni_conf_dir, installer
from agent.host.cni_conf_dir import Confs
from agent.host.installer import Installer, Places
from agent.model.node_status import NodeStatus
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.modes.registry import BUILT_IN
from agent.observe import health
from agent.runtime.observable import Observable
from tests.support import eventually

CONFLIST = {
    "cniVersion": "1.0.0",
    "name": "testcni",
    "plugins": [{"type": "testcni"}, {"type": "portmap", "capabilities": {"portMappings": True}}],
}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    made = Places(tmp_path / "bundle", tmp_path / "template", tmp_path / "bin", tmp_path / "net.d")
    for folder in (made.bundle, made.bin_dir, made.conf_dir):
        folder.mkdir()
    (made.bundle / "testcni").write_bytes(b"plugin 1")
    (made.bundle / "portmap").write_bytes(b"portmap")
    made.template.write_text(json.dumps(CONFLIST))
    return made


def confs(places: Places) -> Confs:
    return cni_conf_dir.read(places.conf_dir, places.template, modes=BUILT_IN)


def ready(places: Places) -> NodeStatus:
    (network,) = cni_conf_dir.read_template(places.template, places.conf_dir, modes=BUILT_IN).networks
    return NodeStatus(synced=True, blocks={network: (ipaddress.ip_network("10.244.1.0/24"),)})


def ready_with(places: Places, conflist: object) -> NodeStatus:
    good = places.template.with_name("good")
    good.write_text(json.dumps(conflist))
    return ready(replace(places, template=good))


def test_the_conflist_comes_last_and_only_when_pods_could_start(places: Places) -> None:
    status = Observable(NodeStatus())
    installer = Installer(places, status, PartProblems("installer"), BUILT_IN)
    installer.once()
    assert (places.bin_dir / "testcni").read_bytes() == b"plugin 1"
    assert (places.bin_dir / "testcni").stat().st_mode & 0o777 == 0o755
    assert not places.conflist.exists()
    status.publish(ready(places))
    installer.once()
    assert json.loads(places.conflist.read_text()) == CONFLIST
    assert places.conflist.stat().st_mode & 0o777 == 0o600
    status.publish(replace(ready(places), blocks={}))
    installer.once()
    assert places.conflist.exists(), "a node that is busy for a moment must not turn NotReady"


def test_what_is_right_is_not_written_again(places: Places) -> None:
    installer = Installer(places, Observable(ready(places)), PartProblems("installer"), BUILT_IN)
    installer.once()
    before = [(path, path.stat().st_ino) for path in (places.bin_dir / "testcni", places.conflist)]
    installer.once()
    assert [(path, path.stat().st_ino) for path, _ in before] == before
    (places.bundle / "testcni").write_bytes(b"plugin 2")
    installer.once()
    assert (places.bin_dir / "testcni").read_bytes() == b"plugin 2"
    assert [path.name for path in places.bin_dir.iterdir() if path.name.startswith(".")] == []


def test_drift_is_repaired_at_once(places: Places) -> None:
    installer, stop = (
        Installer(places, Observable(ready(places)), PartProblems("installer"), BUILT_IN),
        threading.Event(),
    )
    thread = threading.Thread(target=installer.run, args=(stop,))
    thread.start()
    try:
        eventually(places.conflist.exists)
        time.sleep(0.3)
        places.conflist.unlink()
        eventually(places.conflist.exists)
        (places.bin_dir / "testcni").write_bytes(b"somebody else's")
        eventually(lambda: (places.bin_dir / "testcni").read_bytes() == b"plugin 1")
    finally:
        stop.set()
        installer.wake()
        thread.join()


def test_a_new_conflist_is_seen_at_once(places: Places) -> None:
    """As kubelet brings it: the ConfigMap's folder changes by its link `..data`."""
    folder = places.template.parent / "config"
    for name, mode in (("..one", "host-gw"), ("..two", "vxlan")):
        (folder / name).mkdir(parents=True)
        conflist = {**CONFLIST, "plugins": [{"type": "testcni", "mode": mode}]}
        (folder / name / "template").write_text(json.dumps(conflist))
    (folder / "..data").symlink_to("..one")
    (folder / "template").symlink_to("..data/template")
    places = replace(places, template=folder / "template")
    status, stop = Observable(ready(places)), threading.Event()
    installer, followed = (
        Installer(places, status, PartProblems("installer"), BUILT_IN),
        cni_conf_dir.ConfDir(places.conf_dir, places.template, BUILT_IN, PartProblems("confs")),
    )
    threads = [threading.Thread(target=part.run, args=(stop,)) for part in (installer, followed)]
    for thread in threads:
        thread.start()
    try:
        eventually(places.conflist.exists)
        (folder / "..new").symlink_to("..two")
        (folder / "..new").rename(folder / "..data")
        eventually(lambda: followed.found.get().chosen["testcni"].mode == "vxlan")
        status.publish(ready(places))
        eventually(lambda: "vxlan" in places.conflist.read_text())
    finally:
        stop.set()
        installer.wake()
        followed.wake()
        for thread in threads:
            thread.join()


def test_a_plugin_of_the_conflist_that_is_on_no_disk_is_told(places: Places) -> None:
    """libcni loads such a conflist, and fails at each ADD."""
    plugins = [*CONFLIST["plugins"], {"type": "tuning", "sysctl": {}}]
    places.template.write_text(json.dumps({**CONFLIST, "plugins": plugins}))
    installer = Installer(places, Observable(ready(places)), PartProblems("installer"), BUILT_IN)
    installer.once()
    (problem,) = installer._problems.get().values()
    assert "names the plugin tuning" in str(problem)
    (places.bin_dir / "tuning").write_bytes(b"tuning")
    installer.once()
    assert installer._problems.get() == {}


def test_a_conf_that_sorts_first_is_told_and_stays(places: Places) -> None:
    other = places.conf_dir / "00-other.conf"
    other.write_text("{}")
    (places.conf_dir / "10-flannel.conflist").write_text("{}")
    installer = Installer(places, Observable(ready(places)), PartProblems("installer"), BUILT_IN)
    installer.once()
    assert [p.where for p in installer._problems.get().values()] == [str(other)]
    assert other.exists()
    other.unlink()
    installer.once()
    assert installer._problems.get() == {}


def test_a_host_folder_that_can_not_be_written_is_told(places: Places) -> None:
    places = replace(places, bin_dir=places.template / "below-a-file")
    installer = Installer(places, Observable(ready(places)), PartProblems("installer"), BUILT_IN)
    installer.once()
    assert "Not a directory" in str(installer._problems.get()["install"])


def test_uninstall_takes_what_is_ours_and_nothing_else(places: Places) -> None:
    Installer(places, Observable(ready(places)), PartProblems("installer"), BUILT_IN).once()
    (places.bin_dir / "portmap").write_bytes(b"the distribution's")
    (places.bin_dir / "bridge").write_bytes(b"x")
    os.utime(places.bin_dir / "bridge")
    removed = installer.uninstall(places)
    assert removed == [places.conflist, places.bin_dir / "testcni"]
    assert sorted(path.name for path in places.bin_dir.iterdir()) == ["bridge", "portmap"]
    assert installer.uninstall(places) == []


@pytest.mark.parametrize("kind", ["multus", "multus-shim"])
def test_a_plugin_that_calls_ours_may_sort_first(places: Places, kind: str) -> None:
    alone, listed = {"name": "meta", "type": kind}, {"name": "meta", "plugins": [{"type": kind}]}
    (places.conf_dir / "00-multus.conf").write_text(json.dumps(alone))
    (places.conf_dir / "01-multus.conflist").write_text(json.dumps(listed))
    assert installer.foreign(places.conf_dir) == []
    (places.conf_dir / "02-multus.conf").write_text(json.dumps(listed))  # runtimes look at the name, and refuse it
    for number, text in enumerate(['{"type": "calico"}', '{"plugins": 7}', "{", '{"plugins": [{}]}']):
        (places.conf_dir / f"03-{number}.conf").write_text(text)
    assert len(installer.foreign(places.conf_dir)) == 5


def test_runtimes_load_hidden_files_and_no_folders(places: Places) -> None:
    (places.conf_dir / "00-folder.conf").mkdir()
    (places.conf_dir / "00-other.conf.bak").write_text("{}")
    (places.conf_dir / ".00-hidden.conf").write_text('{"name": "other", "type": "bridge"}')
    assert installer.foreign(places.conf_dir) == [places.conf_dir / ".00-hidden.conf"]


def test_a_new_conflist_waits_until_its_networks_are_prepared(places: Places) -> None:
    status, problems = Observable(ready(places)), PartProblems("installer")
    installer = Installer(places, status, problems, modes=BUILT_IN)
    installer.once()
    old = places.conflist.read_bytes()
    new = json.dumps({**CONFLIST, "plugins": [{"type": "testcni", "mode": "vxlan"}]})
    places.template.write_text(new)
    installer.once()
    assert places.conflist.read_bytes() == old
    assert "network testcni (vxlan) is not prepared, so the old conflist stays" in str(problems.get()["conflist"])
    status.publish(ready(places))
    installer.once()
    assert places.conflist.read_text() == new
    assert problems.get() == {}


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "testcni", ',
        '{"cniVersion": "1.0.0", "name": "testcni", "plugins": [{"type": "testcni", "mode": "wireguard"}]}',
        "",
        "[]",
        '{"cniVersion": "1.0.0", "name": "testcni", "type": "testcni"}',
        "\ufeff" + json.dumps(CONFLIST),
        '{"cniVersion": "1.0.0", "plugins": [{"type": "testcni", "name": "testcni"}]}',
        json.dumps({**CONFLIST, "disableCheck": 1}),
        json.dumps({**CONFLIST, "cniVersion": "9.9.9"}),
        json.dumps({key: value for key, value in CONFLIST.items() if key != "cniVersion"}),
        json.dumps({**CONFLIST, "plugins": [{"type": "testcni", "agentWait": 9000}]}),
    ],
)
def test_an_impossible_conflist_leaves_the_old_one(places: Places, text: str) -> None:
    installer = Installer(places, Observable(ready(places)), PartProblems("installer"), BUILT_IN)
    installer.once()
    places.template.write_text(text)
    installer.once()
    assert json.loads(places.conflist.read_text()) == CONFLIST
    told = [
        *confs(places).problems,
        *installer._problems.get().values(),
    ]
    assert [problem.where for problem in told] == [str(places.template)]
    assert confs(places).chosen["testcni"].mode == "host-gw"
    page = health.ready(
        ready_with(places, CONFLIST),
        confs(places),
        installer,
    )
    assert page.status == 503
    assert f"the conflist {places.template} cannot be used" in page.body.decode()
    places.template.write_text(json.dumps(CONFLIST))
    installer.once()
    assert health.ready(ready(places), confs(places), installer).status == 200


def test_a_conflist_that_waits_says_why(places: Places) -> None:
    """Who reads an Event sees no other problem beside it."""
    status, problems = Observable(ready(places)), PartProblems("installer")
    installer = Installer(places, status, problems, modes=BUILT_IN)
    installer.once()
    places.template.write_text(json.dumps({**CONFLIST, "plugins": [{"type": "testcni", "mode": "vxlan"}]}))
    installer.once()
    (first,) = problems.get().values()
    cause = Problem("eBPF", "load vxlan_ingress.o: Operation not permitted", "give the agent CAP_BPF")
    for _ in range(3):  # its own problem, which is one of the node's, is no reason for itself
        status.publish(replace(ready_with(places, CONFLIST), problems=(*problems.get().values(), cause)))
        installer.once()
        (problem,) = problems.get().values()
        assert problem.what.startswith("network testcni (vxlan) is not prepared, so the old conflist stays: ")
        assert problem.what.endswith(": eBPF: load vxlan_ingress.o: Operation not permitted")
        assert problem.remedy == "give the agent CAP_BPF"
    assert "see the other problems" not in f"{first} {problem}"


@pytest.mark.parametrize("before", [True, False], ids=["running", "first"])
def test_a_conflist_that_is_missing_is_told(places: Places, *, before: bool) -> None:
    """As in Kubernetes, when the ConfigMap loses the key."""
    installer, status = (
        Installer(places, Observable(ready(places)), PartProblems("installer"), BUILT_IN),
        ready(places),
    )
    if before:
        installer.once()
    places.template.unlink()
    installer.once()
    (problem,) = installer._problems.get().values()
    assert "there is no such file; in Kubernetes: give the ConfigMap the key template" in str(problem)
    page = health.ready(status, confs(places), installer)
    assert page.status == 503
    assert f"the conflist {places.template} cannot be used: there is no such file" in page.body.decode()
    assert places.conflist.exists() == before
    places.template.write_text(json.dumps(CONFLIST))
    installer.once()
    assert installer._problems.get() == {}
    assert health.ready(status, confs(places), installer).status == 200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{"name": "testcni",\n  "plugins" []}',
            "is no JSON: Expecting ':' delimiter at line 2, column 13",
        ),
        ("\n", "is empty (write a conflist into it)"),
        ("\ufeff{}", "begins with a byte order mark (save it as plain UTF-8)"),
        (
            '{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "testcni", "mode": "x"}]}',
            "mode: 'x' is not",
        ),
        ('{"cniVersion": "1.0.0", "name": "n", "plugins": 7}', "plugins"),
    ],
)
def test_what_is_wrong_with_a_conflist_is_said_with_place_and_remedy(
    places: Places, text: str, words: str
) -> None:
    places.template.write_text(text)
    (problem,) = confs(places).problems
    assert words in str(problem)
    assert problem.where == str(places.template)
    assert "fix it (in Kubernetes: the ConfigMap)" in problem.remedy
    installer = Installer(places, Observable(NodeStatus(synced=True)), PartProblems("installer"), BUILT_IN)
    installer.once()
    assert words in installer.lacking


def test_a_conflist_that_can_not_be_read_is_told(places: Places) -> None:
    installer = Installer(places, Observable(ready(places)), PartProblems("installer"), BUILT_IN)
    installer.once()
    places.template.unlink()
    places.template.mkdir()
    installer.once()
    found = confs(places)
    assert [problem.where for problem in found.problems] == [str(places.template)]
    assert health.ready(NodeStatus(synced=True), found, installer).status == 503
    assert installer.lacking
    assert places.conflist.exists()


def test_a_conflist_without_our_plugin_is_told(places: Places) -> None:
    installer = Installer(places, Observable(ready(places)), PartProblems("installer"), BUILT_IN)
    places.template.write_text('{"name": "testcni", "plugins": [{"type": "portmap"}]}')
    installer.once()
    assert "has no plugin of type testcni" in str(installer._problems.get()["conflist"])
    assert not places.conflist.exists()
