"""The folder datastore on real files: what is created, updated and deleted, by many at once."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import json
import multiprocessing
import os
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from agent.cluster.directory_store import DirectoryStore, DirectoryTimes
from agent.cluster.kinds import KINDS
from agent.cluster.objects import to_doc
from agent.cluster.store import ConflictError, NotFoundError, StoreError, Upserted
from agent.model.cluster import IPPool, Node
from tests.unit.folders import POOL, block, following, listed, node, text
from tests.unit.properties import examples

# --- create, update, delete


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.name != ".lock")


def test_create(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    made = store.create(block(1))
    assert made == block(1)
    assert made.resource_version
    assert names(tmp_path) == ["ipblock-10-9-1-0-24.yaml"]
    (found,) = store.list("IPBlock")
    assert (found, found.resource_version) == (made, made.resource_version)
    assert (tmp_path / "ipblock-10-9-1-0-24.yaml").stat().st_mode & 0o777 == 0o600


def test_create_of_what_exists(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    (tmp_path / "all.yaml").write_text(text(POOL, node("n1")))
    (tmp_path / "node-n2.yaml").write_text("a: [")
    for obj in (POOL, node("n1"), node("n2")):
        with pytest.raises(ConflictError):
            store.create(obj)
    store.create(node("pool"))  # the same name, another kind
    assert names(tmp_path) == ["all.yaml", "node-n2.yaml", "node-pool.yaml"]


def test_a_created_object_reaches_the_watches_of_others(tmp_path: Path) -> None:
    with following(tmp_path) as watcher:
        watcher.until(lambda: len(watcher.history) == len(KINDS))
        made = DirectoryStore(tmp_path).create(block(1))
        watcher.until_names(made.name)
        assert watcher.history[len(KINDS) :] == [Upserted(made)]


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_update(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"p.{suffix}").write_text(json.dumps(to_doc(POOL)))
    store = DirectoryStore(tmp_path)
    (old,) = store.list("IPPool")
    new = store.update(IPPool("pool", POOL.cidr, 26, old.resource_version))
    assert new == IPPool("pool", POOL.cidr, 26)
    assert DirectoryStore(tmp_path).list("IPPool") == (new,)
    assert names(tmp_path) == [f"p.{suffix}"]
    with pytest.raises(ConflictError):
        store.update(IPPool("pool", POOL.cidr, 28, old.resource_version))
    assert store.update(IPPool("pool", POOL.cidr, 28, new.resource_version)).resource_version
    with pytest.raises(NotFoundError):
        store.update(node("none"))


def test_delete(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    known = store.create(block(1))
    with pytest.raises(ConflictError, match="has changed since it was read"):
        store.delete("IPBlock", block(1).name, replace(block(1), node="other"))
    store.delete("IPBlock", block(1).name, known)
    store.create(block(1))
    store.delete("IPBlock", block(1).name)
    assert store.list("IPBlock") == ()
    assert names(tmp_path) == []
    with pytest.raises(NotFoundError):
        store.delete("IPBlock", block(1).name)


def test_files_of_many_and_bad_files_are_not_ours_to_write(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text(node("n1"), node("n2")))
    store = DirectoryStore(tmp_path)
    version = store.list("Node")[0].resource_version
    with pytest.raises(StoreError, match=r"a\.yaml holds other objects"):
        store.update(Node("n1", resource_version=version))
    with pytest.raises(StoreError, match=r"a\.yaml holds other objects"):
        store.delete("Node", "n1")
    file.write_text(text(node("n1")))
    store.list("Node")
    file.write_text("a: [")  # somebody is in the middle of an edit
    with pytest.raises(StoreError, match="is not YAML"):
        store.delete("Node", "n1")
    assert file.read_text() == "a: ["


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path)
    made = store.create(POOL)
    before = (tmp_path / "ippool-pool.yaml").read_bytes()

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.create(node("n1"))
    with pytest.raises(StoreError, match="No space left"):
        store.update(IPPool("pool", POOL.cidr, 28, made.resource_version))
    assert names(tmp_path) == ["ippool-pool.yaml"]
    assert (tmp_path / "ippool-pool.yaml").read_bytes() == before


def claim(path: Path, start: Any, number: int, won: Any) -> None:
    store = DirectoryStore(path)
    store.list("IPBlock")
    start.wait()
    try:
        store.create(block(1, f"n{number}"))
        won.put(number)
    except ConflictError:
        won.put(None)


def test_of_fifty_processes_one_wins_a_claim(tmp_path: Path) -> None:
    server = multiprocessing.get_context("forkserver")  # this process has threads, and they have locks
    server.set_forkserver_preload([__name__])
    start, won = server.Barrier(50), server.SimpleQueue()
    claimants = [server.Process(target=claim, args=(tmp_path, start, n, won)) for n in range(50)]
    for claimant in claimants:
        claimant.start()
    winners = [n for _ in claimants if (n := won.get()) is not None]
    for claimant in claimants:
        claimant.join()
    assert len(winners) == 1
    assert DirectoryStore(tmp_path).list("IPBlock") == (block(1, f"n{winners[0]}"),)
    assert names(tmp_path) == ["ipblock-10-9-1-0-24.yaml"]


def test_of_many_updates_none_is_lost(tmp_path: Path) -> None:
    DirectoryStore(tmp_path).create(IPPool("pool", ipaddress.ip_network("10.0.0.0/8"), 8))
    start = threading.Barrier(4)

    def grow() -> None:
        store = DirectoryStore(tmp_path)
        start.wait()
        for _ in range(5):
            while True:
                (pool,) = store.list("IPPool")
                assert isinstance(pool, IPPool)
                try:
                    store.update(IPPool("pool", pool.cidr, pool.block_size + 1, pool.resource_version))
                    break
                except ConflictError:
                    continue

    threads = [threading.Thread(target=grow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert DirectoryStore(tmp_path).list("IPPool") == (IPPool("pool", ipaddress.ip_network("10.0.0.0/8"), 28),)


# --- any edits whatever

files = st.sampled_from(["a.yaml", "b.yml", "c.json"])
some = st.builds(node, st.sampled_from(["n1", "n2", "n3"]), st.integers(1, 3))
good = st.lists(some, max_size=2, unique_by=lambda n: n.name)  # one name twice makes a file bad, as "{" does
contents = good.map(lambda objs: json.dumps({"kind": "List", "items": [to_doc(obj) for obj in objs]}))
edits = st.tuples(
    st.sampled_from(["in place", "rename", "delete", "bad", "move", "look"]), files, contents | st.just("{"), files
)


def edit(folder: Path, how: str, name: str, content: str, other: str) -> None:
    path = folder / name
    match how:
        case "in place":
            path.write_text(content)
        case "rename":
            (folder / ".tmp").write_text(content)
            (folder / ".tmp").rename(path)
        case "bad":
            path.write_text("{")
        case "delete":
            path.unlink(missing_ok=True)
        case "move" if path.exists():
            path.rename(folder / other)
        case "look":
            time.sleep(0.03)  # lets the watch see what is there in between: no result depends on it


@settings(
    max_examples=examples(20), deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)  # no shrinking: it waits
@given(st.lists(edits, max_size=8))
def test_after_any_edits_what_was_delivered_is_what_is_there(steps: list[tuple[str, str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as name, following(Path(name)) as watcher:
        folder = Path(name)
        for step in steps:
            edit(folder, *step)
        for path in folder.iterdir():  # a bad file's last good state depends on who saw it: mend them
            if path.read_text() == "{":
                path.write_text(json.dumps(to_doc(node("mended"))))
        fresh = listed(DirectoryStore(folder))
        watcher.until(lambda: len(watcher.history) >= 3 and watcher.state == fresh)


def test_what_a_node_announces_is_beside_its_manifest(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    (tmp_path / "nodes.yaml").write_text(text(node("n1"), node("n2", 2)))
    with following(tmp_path) as seen:
        seen.until_names("n1", "n2")
        store.publish_accepted_modes("n1", "net=vxlan,host-gw")
        seen.until(
            lambda: getattr(seen.state["Node", "n1"], "accepted_modes", ()) == (("net", ("vxlan", "host-gw")),)
        )
        store.publish_accepted_modes("n1", "net=vxlan")
        seen.until(lambda: getattr(seen.state["Node", "n1"], "accepted_modes", ()) == (("net", ("vxlan",)),))
        (tmp_path / "n2.receives").write_bytes(b"\xff\xfe")
        for _ in range(2):
            store.publish_accepted_modes("n1", "")
        assert not (tmp_path / "n1.receives").exists()
        seen.until(lambda: seen.state["Node", "n1"] == node("n1"))
    assert (tmp_path / "nodes.yaml").read_text() == text(node("n1"), node("n2", 2))
    with pytest.raises(StoreError, match="can't be written"):
        DirectoryStore(tmp_path / "none").publish_accepted_modes("n1", "net=vxlan")


def test_a_node_announces_without_waiting_for_who_reads_what_is_in_the_way(tmp_path: Path) -> None:
    for name in (".n1.receives", ".n1.receives.new", "n1.receives"):
        os.mkfifo(tmp_path / name)
    DirectoryStore(tmp_path).publish_accepted_modes("n1", "net=vxlan")
    assert (tmp_path / "n1.receives").read_text() == "net=vxlan\n"


def test_who_holds_the_lock_for_good_holds_nobody_up(tmp_path: Path) -> None:
    """As an agent on another node does that is stopped in the middle of a write."""
    store = DirectoryStore(tmp_path, DirectoryTimes(locked=0.05))
    known = store.create(block(1))
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=r"another process holds .*/\.lock"):
            store.delete("IPBlock", block(1).name, known)
    store.delete("IPBlock", block(1).name, known)


def test_a_file_system_without_locks_is_an_error_of_the_datastore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path)
    known = store.create(block(1))

    def refused(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(StoreError, match="No locks available"):
        store.delete("IPBlock", block(1).name, known)
