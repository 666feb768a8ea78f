"""The folder datastore on real files."""

from __future__ import annotations

import errno
import ipaddress
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from agent.cluster import folder as folder_module
from agent.cluster import inotify, manifests
from agent.cluster.folder import Folder
from agent.cluster.objects import to_doc
from agent.cluster.store import (
    KINDS,
    Change,
    ConflictError,
    Gone,
    Kind,
    NotFoundError,
    Put,
    Replaced,
    StoreError,
    Trouble,
    kind_of,
)
from agent.model import IPBlock, IPPool, Node, Problem, Resource

SOON = 5.0  # seconds: well below the watch's own LOOK_AGAIN, so what is seen was seen by inotify
State = dict[tuple[Kind, str], Resource]


@pytest.fixture(autouse=True, scope="module")
def quick_stop() -> Iterator[None]:
    """A watch that looks at `stop` more often, as many are stopped here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inotify, "POLL", 0.02)
        yield


def node(name: str, number: int = 1) -> Node:
    address = ipaddress.ip_address(f"192.0.2.{number}")
    return Node(name, (address,), (ipaddress.ip_network(f"10.244.{number}.0/24"),))


def block(number: int, owner: str = "n1") -> IPBlock:
    return IPBlock(ipaddress.ip_network(f"10.9.{number}.0/24"), owner, "pool")


POOL = IPPool("pool", ipaddress.ip_network("10.9.0.0/16"), 24)


def text(*objs: Resource) -> str:
    return yaml.safe_dump_all([to_doc(obj) for obj in objs], sort_keys=False)


def listed(store: Folder) -> State:
    return {(kind, obj.name): obj for kind in KINDS for obj in store.list(kind)}


class Follower:
    """What a watch has delivered: all of it, and what follows from it."""

    def __init__(self, path: Path) -> None:
        self.history: list[Change] = []
        self.state: State = {}
        self.troubles: dict[str, Problem] = {}
        self.stop = threading.Event()
        self._told = threading.Condition()
        self.thread = threading.Thread(target=Folder(path).watch, args=(self._deliver, self.stop))

    def _deliver(self, changes: Sequence[Change]) -> None:
        with self._told:
            for change in changes:
                self._apply(change)
            self.history += changes
            self._told.notify_all()

    def _apply(self, change: Change) -> None:
        match change:
            case Replaced(kind, objects):
                self.state = {key: obj for key, obj in self.state.items() if key[0] != kind}
                self.state.update({(kind, obj.name): obj for obj in objects})
            case Put(obj):
                self.state[(kind_of(obj), obj.name)] = obj
            case Gone(kind, name):
                del self.state[(kind, name)]
            case Trouble(source, None):
                del self.troubles[source]
            case Trouble(source, problem):
                assert problem
                self.troubles[source] = problem

    def until(self, true: Callable[[], bool]) -> None:
        with self._told:
            assert self._told.wait_for(true, SOON), f"{self.state=} {self.troubles=}"

    def until_names(self, *names: str) -> None:
        self.until(lambda: sorted(name for _kind, name in self.state) == sorted(names))

    def gone(self) -> list[Gone]:
        return [change for change in self.history if isinstance(change, Gone)]


@contextmanager
def following(path: Path) -> Iterator[Follower]:
    follower = Follower(path)
    follower.thread.start()
    try:
        yield follower
    finally:
        follower.stop.set()
        follower.thread.join(SOON)
        assert not follower.thread.is_alive()


# --- what is listed


def test_lists_what_the_files_hold(tmp_path: Path) -> None:
    (tmp_path / "many.yaml").write_text("---\n" + text(node("n1"), POOL) + "---\n# nothing\n---\n")
    (tmp_path / "one.yml").write_text(text(block(1)))
    (tmp_path / "list.json").write_text(json.dumps({"kind": "List", "items": [to_doc(node("n2", 2))]}))
    for ignored in (".hidden.yaml", "README.md", "x.yaml~", "x.yaml.swp"):
        (tmp_path / ignored).write_text(text(node("ignored")))
    store = Folder(tmp_path)
    assert store.list("Node") == (node("n2", 2), node("n1"))
    assert store.list("IPPool") == (POOL,)
    assert store.list("IPBlock") == (block(1),)


def test_a_list_shows_every_edit_at_once(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    assert store.list("Node") == ()
    for number in range(1, 30):
        (tmp_path / "n.yaml").write_text(text(node("n", number)))
        assert store.list("Node") == (node("n", number),)


def test_an_edit_within_the_clocks_grain_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "YOUNG", 10**12)
    file = tmp_path / "n.yaml"
    file.write_text(text(node("n", 1)))
    stamp = file.stat().st_mtime_ns
    store = Folder(tmp_path)
    store.list("Node")
    file.write_text(text(node("n", 2)))
    os.utime(file, ns=(stamp, stamp))
    assert store.list("Node") == (node("n", 2),)


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "n.yaml"
    file.write_text(text(node("n")))
    os.utime(file, (1, 1))
    store = Folder(tmp_path)
    store.list("Node")
    monkeypatch.setattr(Path, "open", lambda *_args: pytest.fail("it was read"))
    assert store.list("Node") == (node("n"),)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    store = Folder(tmp_path / "none")
    with pytest.raises(StoreError, match="none"):
        store.list("Node")
    with pytest.raises(StoreError, match="none"):
        store.create(POOL)


def test_the_fast_yaml_loader_is_used() -> None:
    assert manifests.LOADER is yaml.CSafeLoader


# --- what is wrong with a file

GOOD = text(node("n1"))
BAD: dict[str, tuple[str, bytes, int]] = {
    "no YAML": ("yaml", GOOD.encode() + b"---\na: [1\nb: 2\n", GOOD.count("\n") + 3),
    "bad object": ("yaml", GOOD.encode() + b"---\napiVersion: v1\nkind: Nod\n", GOOD.count("\n") + 3),
    "bad field": (
        "yaml",
        GOOD.replace("192.0.2.1", "192.0.2").encode(),
        GOOD[: GOOD.index("192.")].count("\n") + 1,
    ),
    "twice": ("yaml", (GOOD + "---\n" + GOOD).encode(), GOOD.count("\n") + 5),  # its metadata.name
    "not UTF-8": ("yaml", b"# \n# \xff\n" + GOOD.encode(), 2),
    "no JSON": ("json", b'{\n"kind": \n}', 3),
    "empty": ("yaml", b"", 0),
    "too deep": ("json", b"[" * 100_000, 0),
    "digits": ("json", b"1" * 5000, 0),
    "no text keys": ("yaml", GOOD.encode() + b"1: x\n", 0),
    "in itself": ("yaml", GOOD.encode() + b"x: &a [*a]\n", GOOD.count("\n") + 1),
    "in a list": (
        "yaml",
        b"kind: List\nitems:\n" + b"- {apiVersion: v1, kind: Node, metadata: {name: a}}\n- {}\n",
        4,
    ),
    "no objects": ("yaml", b"hello\n", 1),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_is_trouble_and_counts_for_nothing(tmp_path: Path, what: str) -> None:
    suffix, data, line = BAD[what]
    bad = tmp_path / f"bad.{suffix}"
    bad.write_bytes(data)
    (tmp_path / "good.yaml").write_text(text(node("n2")))
    with following(tmp_path) as follower:
        follower.until_names("n2")
        problem = follower.troubles[str(bad)]
        assert problem.where == (f"{bad}:{line}" if line else str(bad))
        assert problem.what
        assert problem.remedy
        assert len(str(problem)) < 1000
        bad.write_text(json.dumps(to_doc(node("n1"))))
        follower.until_names("n1", "n2")
        assert not follower.troubles


def other_than_a_file(path: Path, what: str) -> None:
    match what:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "dangling link":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(path.name)
        case "large":
            path.write_text(GOOD + "#" * 2000)


@pytest.mark.parametrize("what", ["directory", "fifo", "dangling link", "loop", "large"])
def test_what_cannot_be_read_is_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(manifests, "LARGEST", 1000)
    bad = tmp_path / "bad.yaml"
    bad.write_text(text(node("n1")))
    with following(tmp_path) as follower:
        follower.until_names("n1")
        if what in ("directory", "loop"):  # these can't take a file's place in one step
            bad.unlink()
            follower.until_names()
            other_than_a_file(bad, what)
        else:
            other_than_a_file(tmp_path / ".next", what)
            (tmp_path / ".next").rename(bad)
        follower.until(lambda: str(bad) in follower.troubles)
        if what not in ("directory", "loop"):
            assert follower.state == {("Node", "n1"): node("n1")}  # its last good state stays
        (tmp_path / ".good").write_text(text(node("n1", 9)))
        if what == "directory":
            bad.rmdir()
        (tmp_path / ".good").rename(bad)
        follower.until(lambda: not follower.troubles)
        follower.until(lambda: follower.state == {("Node", "n1"): node("n1", 9)})


def test_a_file_that_turns_bad_keeps_its_last_good_state(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text(node("n1"), node("n2")))
    with following(tmp_path) as follower:
        follower.until_names("n1", "n2")
        for bad in (b"a: [", b"", b"\xff", text(node("n1"), node("n1")).encode()):
            file.write_bytes(bad)
            follower.until(lambda: str(file) in follower.troubles)
            file.write_text(text(node("n1"), node("n2")))
            follower.until(lambda: not follower.troubles)
        assert not follower.gone()
        assert not any(isinstance(change, Put) for change in follower.history)
        file.write_text("a: [")
        follower.until(lambda: bool(follower.troubles))
        file.unlink()
        follower.until_names()
        assert not follower.troubles


def test_one_object_in_two_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(node("n", 1)))
    with following(tmp_path) as follower:
        follower.until_names("n")
        (tmp_path / "b.yaml").write_text(text(node("n", 2), POOL))
        follower.until_names("n", "pool")
        assert str(tmp_path / "a.yaml") in follower.troubles[str(tmp_path / "b.yaml")].what
        assert follower.state[("Node", "n")] == node("n", 1)
        (tmp_path / "a.yaml").unlink()
        follower.until(lambda: follower.state[("Node", "n")] == node("n", 2))
        follower.until(lambda: not follower.troubles)
        assert not follower.gone()


# --- what a watch delivers


def test_a_watch_begins_with_a_complete_list_of_each_kind(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(node("n1")))
    with following(tmp_path) as follower:
        follower.until_names("n1")
        assert follower.history == [
            Replaced("Node", (node("n1"),)),
            Replaced("IPPool", ()),
            Replaced("IPBlock", ()),
            Replaced("IPReservation", ()),
        ]


def test_changes_come_as_puts_and_gones_and_only_those(tmp_path: Path) -> None:
    with following(tmp_path) as follower:
        follower.until(lambda: len(follower.history) == len(KINDS))
        (tmp_path / "a.yaml").write_text(text(node("n1"), node("n2")))
        follower.until_names("n1", "n2")
        (tmp_path / ".tmp").write_text(text(node("n1"), node("n3")))
        (tmp_path / ".tmp").rename(tmp_path / "a.yaml")
        follower.until_names("n1", "n3")
        (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
        (tmp_path / "c.yaml").write_text(text(POOL))
        follower.until_names("n1", "n3", "pool")
        puts = [Put(node("n1")), Put(node("n2")), Gone("Node", "n2"), Put(node("n3")), Put(POOL)]
        assert follower.history[len(KINDS) :] == puts


def test_a_new_version_is_told_though_the_object_is_equal_to_us(tmp_path: Path) -> None:
    doc = to_doc(POOL)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(doc))
    with following(tmp_path) as follower:
        follower.until_names("pool")
        old = follower.state[("IPPool", "pool")]
        doc["metadata"]["labels"] = {"a": "b"}
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(doc))
        follower.until(lambda: follower.state[("IPPool", "pool")].resource_version != old.resource_version)


def test_a_half_written_file_is_left_alone_until_its_writer_closes_it(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text(node("n1"), node("n2")))
    with following(tmp_path) as follower:
        follower.until_names("n1", "n2")
        with file.open("w") as writer, (tmp_path / "new.yaml").open("w") as other:
            writer.write(text(node("n1")))  # good so far, but n2 is missing
            writer.flush()
            other.write("a: [")
            other.flush()
            (tmp_path / "b.yaml").write_text(text(node("n3")))  # makes it look at the folder
            follower.until_names("n1", "n2", "n3")
            writer.write("---\n" + text(node("n4")))
            other.write("]")
            other.seek(0)
            other.truncate()
            other.write(text(POOL))
        follower.until_names("n1", "n3", "n4", "pool")
        assert follower.gone() == [Gone("Node", "n2")]
        assert not any(isinstance(change, Trouble) for change in follower.history)


def test_a_writer_that_stalls_does_not_hide_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "STALLED", 0)
    with following(tmp_path) as follower:
        follower.until(lambda: len(follower.history) == len(KINDS))
        with (tmp_path / "a.yaml").open("w") as writer:
            writer.write(text(node("n1")))
            writer.flush()
            (tmp_path / "b.yaml").write_text(text(node("n2")))
            follower.until_names("n1", "n2")


def test_a_config_map_volume(tmp_path: Path) -> None:
    for version, name in (("..1", "n1"), ("..2", "n2")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "a.yaml").write_text(text(node(name)))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    with following(tmp_path) as follower:
        follower.until_names("n1")
        (tmp_path / "..tmp").symlink_to("..2")
        (tmp_path / "..tmp").rename(tmp_path / "..data")
        follower.until_names("n2")


# --- the folder comes and goes


def test_a_folder_that_appears_later(tmp_path: Path) -> None:
    path = tmp_path / "late"
    with following(path) as follower:
        follower.until(lambda: str(path) in follower.troubles)
        assert follower.history == [Trouble(str(path), follower.troubles[str(path)])]  # and no list at all
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "a.yaml").write_text(text(node("n1")))
        (tmp_path / "new").rename(path)
        follower.until_names("n1")
        follower.until(lambda: not follower.troubles)
        assert len([change for change in follower.history if isinstance(change, Replaced)]) == len(KINDS)


def test_a_folder_that_vanishes_takes_nothing_with_it(tmp_path: Path) -> None:
    path, away = tmp_path / "here", tmp_path / "away"
    path.mkdir()
    (path / "a.yaml").write_text(text(node("n1"), node("n2")))
    with following(path) as follower:
        follower.until_names("n1", "n2")
        path.rename(away)
        follower.until(lambda: str(path) in follower.troubles)
        assert not follower.gone()
        (away / "a.yaml").write_text(text(node("n1"), node("n3")))
        away.rename(path)
        follower.until_names("n1", "n3")
        follower.until(lambda: not follower.troubles)
        assert follower.gone() == [Gone("Node", "n2")]


def test_an_unmounted_folder_takes_nothing_with_it(tmp_path: Path) -> None:
    path = tmp_path / "mount"
    path.mkdir()
    (path / "a.yaml").write_text(text(node("n1")))
    (tmp_path / "beneath").mkdir()
    with following(path) as follower:
        follower.until_names("n1")
        path.rename(tmp_path / "away")
        (tmp_path / "beneath").rename(path)
        follower.until(lambda: "no manifests" in str(follower.troubles.get(str(path))))
        assert not follower.gone()
        (path / "b.yaml").write_text(text(node("n2")))
        follower.until_names("n2")
        follower.until(lambda: not follower.troubles)


def test_a_folder_that_vanishes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "here"
    path.mkdir()
    for name in ("a", "b"):
        (path / f"{name}.yaml").write_text(text(node(name)))
    store = Folder(path)
    assert len(store.list("Node")) == 2
    real = Path.iterdir

    def iterdir(self: Path) -> Iterator[Path]:
        found = list(real(self))
        self.rename(tmp_path / "away")
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert len(store.list("Node")) == 2


def test_emptying_a_folder_is_no_vanishing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(node("n1")))
    with following(tmp_path) as follower:
        follower.until_names("n1")
        (tmp_path / "a.yaml").unlink()
        follower.until_names()
        assert not follower.troubles


def test_stop_and_errors_of_the_receiver_end_a_watch_and_leave_nothing_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with following(tmp_path) as follower:
        follower.until(lambda: len(follower.history) == len(KINDS))

    def refuse(changes: Sequence[Change]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Folder(tmp_path).watch(refuse, threading.Event())
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- create, update, delete


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.name != ".lock")


def test_create(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    made = store.create(block(1))
    assert made == block(1)
    assert made.resource_version
    assert names(tmp_path) == ["ipblock-10-9-1-0-24.yaml"]
    (found,) = store.list("IPBlock")
    assert (found, found.resource_version) == (made, made.resource_version)
    assert (tmp_path / "ipblock-10-9-1-0-24.yaml").stat().st_mode & 0o777 == 0o600


def test_create_of_what_exists(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    (tmp_path / "all.yaml").write_text(text(POOL, node("n1")))
    (tmp_path / "node-n2.yaml").write_text("a: [")
    for obj in (POOL, node("n1"), node("n2")):
        with pytest.raises(ConflictError):
            store.create(obj)
    store.create(node("pool"))  # the same name, another kind
    assert names(tmp_path) == ["all.yaml", "node-n2.yaml", "node-pool.yaml"]


def test_a_created_object_reaches_the_watches_of_others(tmp_path: Path) -> None:
    with following(tmp_path) as follower:
        follower.until(lambda: len(follower.history) == len(KINDS))
        made = Folder(tmp_path).create(block(1))
        follower.until_names(made.name)
        assert follower.history[len(KINDS) :] == [Put(made)]


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_update(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"p.{suffix}").write_text(json.dumps(to_doc(POOL)))
    store = Folder(tmp_path)
    (old,) = store.list("IPPool")
    new = store.update(IPPool("pool", POOL.cidr, 26, old.resource_version))
    assert new == IPPool("pool", POOL.cidr, 26)
    assert Folder(tmp_path).list("IPPool") == (new,)
    assert names(tmp_path) == [f"p.{suffix}"]
    with pytest.raises(ConflictError):
        store.update(IPPool("pool", POOL.cidr, 28, old.resource_version))
    assert store.update(IPPool("pool", POOL.cidr, 28, new.resource_version)).resource_version
    with pytest.raises(NotFoundError):
        store.update(node("none"))


def test_delete(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    known = store.create(block(1))
    with pytest.raises(ConflictError, match="is another one than was known"):
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
    store = Folder(tmp_path)
    version = store.list("Node")[0].resource_version
    with pytest.raises(StoreError, match=r"a\.yaml holds other objects"):
        store.update(Node("n1", resource_version=version))
    with pytest.raises(StoreError, match=r"a\.yaml holds other objects"):
        store.delete("Node", "n1")
    file.write_text(text(node("n1")))
    store.list("Node")
    file.write_text("a: [")  # somebody is in the middle of an edit
    with pytest.raises(StoreError, match="no YAML"):
        store.delete("Node", "n1")
    assert file.read_text() == "a: ["


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Folder(tmp_path)
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
    store = Folder(path)
    store.list("IPBlock")
    start.wait()
    try:
        store.create(block(1, f"n{number}"))
        won.put(number)
    except ConflictError:
        won.put(None)


def test_of_fifty_processes_one_wins_a_claim(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    start, won = fork.Barrier(50), fork.SimpleQueue()
    claimants = [fork.Process(target=claim, args=(tmp_path, start, n, won)) for n in range(50)]
    for claimant in claimants:
        claimant.start()
    winners = [n for _ in claimants if (n := won.get()) is not None]
    for claimant in claimants:
        claimant.join()
    assert len(winners) == 1
    assert Folder(tmp_path).list("IPBlock") == (block(1, f"n{winners[0]}"),)
    assert names(tmp_path) == ["ipblock-10-9-1-0-24.yaml"]


def test_of_many_updates_none_is_lost(tmp_path: Path) -> None:
    Folder(tmp_path).create(IPPool("pool", ipaddress.ip_network("10.0.0.0/8"), 8))
    start = threading.Barrier(4)

    def grow() -> None:
        store = Folder(tmp_path)
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
    assert Folder(tmp_path).list("IPPool") == (IPPool("pool", ipaddress.ip_network("10.0.0.0/8"), 28),)


# --- any edits whatever

files = st.sampled_from(["a.yaml", "b.yml", "c.json"])
good = st.lists(st.builds(node, st.sampled_from(["n1", "n2", "n3"]), st.integers(1, 3)), max_size=2, unique_by=str)
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
    max_examples=20, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)  # no shrinking: it waits
@given(st.lists(edits, max_size=8))
def test_after_any_edits_what_was_delivered_is_what_is_there(steps: list[tuple[str, str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as name, following(Path(name)) as follower:
        folder = Path(name)
        for step in steps:
            edit(folder, *step)
        for path in folder.iterdir():  # a bad file's last good state depends on who saw it: mend them
            if path.read_text() == "{":
                path.write_text(json.dumps(to_doc(node("mended"))))
        fresh = listed(Folder(folder))
        follower.until(lambda: len(follower.history) >= 3 and follower.state == fresh)


def test_what_a_node_announces_is_beside_its_manifest(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    (tmp_path / "nodes.yaml").write_text(text(node("n1"), node("n2", 2)))
    with following(tmp_path) as seen:
        seen.until_names("n1", "n2")
        store.announce("n1", "net=vxlan,host-gw")
        seen.until(lambda: getattr(seen.state["Node", "n1"], "receives", ()) == (("net", ("vxlan", "host-gw")),))
        store.announce("n1", "net=vxlan")
        seen.until(lambda: getattr(seen.state["Node", "n1"], "receives", ()) == (("net", ("vxlan",)),))
        (tmp_path / "n2.receives").write_bytes(b"\xff\xfe")
        (tmp_path / "n1.receives").unlink()
        seen.until(lambda: seen.state["Node", "n1"] == node("n1"))
    assert (tmp_path / "nodes.yaml").read_text() == text(node("n1"), node("n2", 2))
    with pytest.raises(StoreError, match="can't be written"):
        Folder(tmp_path / "none").announce("n1", "net=vxlan")
