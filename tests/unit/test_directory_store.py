"""The folder datastore on real files: what is listed, what is wrong, and what a watch delivers."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from agent.cluster import manifest
from agent.cluster.directory_store import DirectoryStore, DirectoryTimes
from agent.cluster.kinds import KINDS
from agent.cluster.objects import to_doc
from agent.cluster.store import Change, Deleted, Listed, SourceProblem, StoreError, Upserted
from agent.codec import strict_yaml
from agent.model.cluster import Node
from tests.unit.folders import POOL, QUICK, block, following, node, text

# --- what is listed


def test_lists_what_the_files_hold(tmp_path: Path) -> None:
    (tmp_path / "many.yaml").write_text("---\n" + text(node("n1"), POOL) + "---\n# nothing\n---\n")
    (tmp_path / "one.yml").write_text(text(block(1)))
    (tmp_path / "list.json").write_text(json.dumps({"kind": "List", "items": [to_doc(node("n2", 2))]}))
    for ignored in (".hidden.yaml", "README.md", "x.yaml~", "x.yaml.swp"):
        (tmp_path / ignored).write_text(text(node("ignored")))
    store = DirectoryStore(tmp_path)
    assert store.list("Node") == (node("n2", 2), node("n1"))
    assert store.list("IPPool") == (POOL,)
    assert store.list("IPBlock") == (block(1),)


def test_a_list_shows_every_edit_at_once(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    assert store.list("Node") == ()
    for number in range(1, 30):
        (tmp_path / "n.yaml").write_text(text(node("n", number)))
        assert store.list("Node") == (node("n", number),)


def test_an_edit_within_the_clocks_grain_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "n.yaml"
    file.write_text(text(node("n", 1)))
    stamp = file.stat().st_mtime_ns
    store = DirectoryStore(tmp_path, DirectoryTimes(young=1000))
    store.list("Node")
    file.write_text(text(node("n", 2)))
    os.utime(file, ns=(stamp, stamp))
    assert store.list("Node") == (node("n", 2),)


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "n.yaml"
    file.write_text(text(node("n")))
    os.utime(file, (1, 1))
    store = DirectoryStore(tmp_path)
    store.list("Node")
    monkeypatch.setattr(Path, "open", lambda *_args: pytest.fail("it was read"))
    assert store.list("Node") == (node("n"),)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "none")
    with pytest.raises(StoreError, match="none"):
        store.list("Node")
    with pytest.raises(StoreError, match="none"):
        store.create(POOL)


def test_the_fast_yaml_loader_is_used() -> None:
    assert issubclass(strict_yaml.Loader, yaml.CSafeLoader)


# --- what is wrong with a file

PATIENT = replace(QUICK, debounce=0.3)  # longer than a file is empty before it is written
GOOD = text(node("n1"))
BAD: dict[str, tuple[str, bytes, int]] = {
    "no YAML": ("yaml", GOOD.encode() + b"---\na: [1\nb: 2\n", GOOD.count("\n") + 3),
    "twice": ("yaml", (GOOD + "---\n" + GOOD).encode(), GOOD.count("\n") + 5),  # its metadata.name
    "not UTF-8": ("yaml", b"# \n# \xff\n" + GOOD.encode(), 2),
    "no JSON": ("json", b'{\n"kind": \n}', 3),
    "empty": ("yaml", b"", 0),
    "too deep": ("json", b"[" * 100_000, 0),
    "digits": ("json", b"1" * 5000, 0),
    "no text keys": ("yaml", GOOD.encode() + b"1: x\n", 0),
    "in itself": ("yaml", GOOD.encode() + b"x: &a [*a]\n", GOOD.count("\n") + 1),
    "no objects": ("yaml", b"hello\n", 1),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_is_trouble_and_counts_for_nothing(tmp_path: Path, what: str) -> None:
    suffix, data, line = BAD[what]
    bad = tmp_path / f"bad.{suffix}"
    bad.write_bytes(data)
    (tmp_path / "good.yaml").write_text(text(node("n2")))
    with following(tmp_path) as watcher:
        watcher.until_names("n2")
        problem = watcher.troubles[str(bad)]
        assert problem.where == (f"{bad}:{line}" if line else str(bad))
        assert problem.what
        assert problem.remedy
        assert len(str(problem)) < 1000
        bad.write_text(json.dumps(to_doc(node("n1"))))
        watcher.until_names("n1", "n2")
        assert not watcher.troubles


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
    monkeypatch.setattr(manifest, "LARGEST", 1000)
    bad = tmp_path / "bad.yaml"
    bad.write_text(text(node("n1")))
    with following(tmp_path) as watcher:
        watcher.until_names("n1")
        if what in ("directory", "loop"):  # these can't take a file's place in one step
            bad.unlink()
            watcher.until_names()
            other_than_a_file(bad, what)
        else:
            other_than_a_file(tmp_path / ".next", what)
            (tmp_path / ".next").rename(bad)
        watcher.until(lambda: str(bad) in watcher.troubles)
        if what not in ("directory", "loop"):
            assert watcher.state == {("Node", "n1"): node("n1")}  # its last good state stays
        (tmp_path / ".good").write_text(text(node("n1", 9)))
        if what == "directory":
            bad.rmdir()
        (tmp_path / ".good").rename(bad)
        watcher.until(lambda: not watcher.troubles)
        watcher.until(lambda: watcher.state == {("Node", "n1"): node("n1", 9)})


# what of a file can't be used, the line that the problem names, and what of it is in force: n1, or what n1 lacks
ODD: dict[str, tuple[bytes, int, Node]] = {
    "bad object": (GOOD.encode() + b"---\napiVersion: v1\nkind: Nod\n", GOOD.count("\n") + 3, node("n1")),
    "bad field": (
        GOOD.replace("192.0.2.1", "192.0.2").encode(),
        GOOD[: GOOD.index("192.")].count("\n") + 1,
        replace(node("n1"), addresses=()),
    ),
    "in a list": (
        b"kind: List\nitems:\n" + b"- {apiVersion: v1, kind: Node, metadata: {name: n1}}\n- {}\n",
        4,
        Node("n1"),
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_one_odd_object_of_a_file_costs_only_itself(tmp_path: Path, what: str) -> None:
    data, line, left = ODD[what]
    odd = tmp_path / "odd.yaml"
    odd.write_bytes(data)
    with following(tmp_path) as watcher:
        watcher.until_names("n1")
        assert watcher.state == {("Node", "n1"): left}
        assert watcher.troubles[str(odd)].where == f"{odd}:{line}"
        odd.write_text(GOOD)
        watcher.until(lambda: not watcher.troubles)
        assert watcher.state == {("Node", "n1"): node("n1")}


def test_an_object_that_turns_odd_keeps_its_last_good_state_and_its_neighbours_change(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text(POOL, node("n1"), node("n2", 2)))
    with following(tmp_path) as watcher:
        watcher.until(lambda: len(watcher.state) == 3)
        bad = (text(POOL) + "---\n" + text(node("n1")) + "---\n" + text(node("n2", 3))).replace("192.0.2.1", "")
        file.write_text(bad.replace("blockSize: 24", "blockSize: 240"))
        watcher.until(lambda: watcher.state[("Node", "n2")] == node("n2", 3))
        assert watcher.state[("Node", "n1")] == node("n1")
        assert watcher.state[("IPPool", "pool")] == POOL
        assert "blockSize" in watcher.troubles[str(file)].what
        assert "status.addresses[0].address" in watcher.troubles[str(file)].what
        file.write_text("apiVersion: v1\nkind: Node\nmetadata: {}\n")  # whose state is it?
        watcher.until(lambda: "metadata.name" in watcher.troubles[str(file)].what)
        assert not watcher.gone()


def test_a_file_that_turns_bad_keeps_its_last_good_state(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text(node("n1"), node("n2")))
    with following(tmp_path) as watcher:
        watcher.until_names("n1", "n2")
        for bad in (b"a: [", b"", b"\xff", text(node("n1"), node("n1")).encode()):
            file.write_bytes(bad)
            watcher.until(lambda: str(file) in watcher.troubles)
            file.write_text(text(node("n1"), node("n2")))
            watcher.until(lambda: not watcher.troubles)
        assert not watcher.gone()
        assert not any(isinstance(change, Upserted) for change in watcher.history)
        file.write_text("a: [")
        watcher.until(lambda: bool(watcher.troubles))
        file.unlink()
        watcher.until_names()
        assert not watcher.troubles


def test_one_object_in_two_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(node("n", 1)))
    with following(tmp_path) as watcher:
        watcher.until_names("n")
        (tmp_path / "b.yaml").write_text(text(node("n", 2), POOL))
        watcher.until_names("n", "pool")
        assert str(tmp_path / "a.yaml") in watcher.troubles[str(tmp_path / "b.yaml")].what
        assert watcher.state[("Node", "n")] == node("n", 1)
        (tmp_path / "a.yaml").unlink()
        watcher.until(lambda: watcher.state[("Node", "n")] == node("n", 2))
        watcher.until(lambda: not watcher.troubles)
        assert not watcher.gone()


# --- what a watch delivers


def test_a_watch_begins_with_a_complete_list_of_each_kind(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(node("n1")))
    with following(tmp_path) as watcher:
        watcher.until_names("n1")
        assert watcher.history == [
            Listed("Node", (node("n1"),)),
            Listed("IPPool", ()),
            Listed("IPBlock", ()),
            Listed("IPReservation", ()),
        ]


def test_changes_come_as_puts_and_gones_and_only_those(tmp_path: Path) -> None:
    with following(tmp_path, PATIENT) as watcher:
        watcher.until(lambda: len(watcher.history) == len(KINDS))
        (tmp_path / "a.yaml").write_text(text(node("n1"), node("n2")))
        watcher.until_names("n1", "n2")
        (tmp_path / ".tmp").write_text(text(node("n1"), node("n3")))
        (tmp_path / ".tmp").rename(tmp_path / "a.yaml")
        watcher.until_names("n1", "n3")
        (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
        (tmp_path / "c.yaml").write_text(text(POOL))
        watcher.until_names("n1", "n3", "pool")
        puts = [
            Upserted(node("n1")),
            Upserted(node("n2")),
            Deleted("Node", "n2"),
            Upserted(node("n3")),
            Upserted(POOL),
        ]
        assert watcher.history[len(KINDS) :] == puts


def test_a_new_version_is_told_though_the_object_is_equal_to_us(tmp_path: Path) -> None:
    doc = to_doc(POOL)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(doc))
    with following(tmp_path) as watcher:
        watcher.until_names("pool")
        old = watcher.state[("IPPool", "pool")]
        doc["metadata"]["labels"] = {"a": "b"}
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(doc))
        watcher.until(lambda: watcher.state[("IPPool", "pool")].resource_version != old.resource_version)


def test_a_half_written_file_is_left_alone_until_its_writer_closes_it(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text(node("n1"), node("n2")))
    with following(tmp_path, PATIENT) as watcher:
        watcher.until_names("n1", "n2")
        with file.open("w") as writer, (tmp_path / "new.yaml").open("w") as other:
            writer.write(text(node("n1")))  # good so far, but n2 is missing
            writer.flush()
            other.write("a: [")
            other.flush()
            (tmp_path / "b.yaml").write_text(text(node("n3")))  # makes it look at the folder
            watcher.until_names("n1", "n2", "n3")
            writer.write("---\n" + text(node("n4")))
            other.write("]")
            other.seek(0)
            other.truncate()
            other.write(text(POOL))
        watcher.until_names("n1", "n3", "n4", "pool")
        assert watcher.gone() == [Deleted("Node", "n2")]
        assert not any(isinstance(change, SourceProblem) for change in watcher.history)


def test_a_writer_that_stalls_does_not_hide_its_file(tmp_path: Path) -> None:
    with following(tmp_path, replace(QUICK, stalled=0)) as watcher:
        watcher.until(lambda: len(watcher.history) == len(KINDS))
        with (tmp_path / "a.yaml").open("w") as writer:
            writer.write(text(node("n1")))
            writer.flush()
            (tmp_path / "b.yaml").write_text(text(node("n2")))
            watcher.until_names("n1", "n2")


def test_a_config_map_volume(tmp_path: Path) -> None:
    for version, name in (("..1", "n1"), ("..2", "n2")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "a.yaml").write_text(text(node(name)))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    with following(tmp_path) as watcher:
        watcher.until_names("n1")
        (tmp_path / "..tmp").symlink_to("..2")
        (tmp_path / "..tmp").rename(tmp_path / "..data")
        watcher.until_names("n2")


# --- the folder comes and goes


def test_a_folder_that_appears_later(tmp_path: Path) -> None:
    path = tmp_path / "late"
    with following(path) as watcher:
        watcher.until(lambda: str(path) in watcher.troubles)
        assert watcher.history == [SourceProblem(str(path), watcher.troubles[str(path)])]  # and no list at all
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "a.yaml").write_text(text(node("n1")))
        (tmp_path / "new").rename(path)
        watcher.until_names("n1")
        watcher.until(lambda: not watcher.troubles)
        assert len([change for change in watcher.history if isinstance(change, Listed)]) == len(KINDS)


def test_a_folder_that_vanishes_takes_nothing_with_it(tmp_path: Path) -> None:
    path, away = tmp_path / "here", tmp_path / "away"
    path.mkdir()
    (path / "a.yaml").write_text(text(node("n1"), node("n2")))
    with following(path) as watcher:
        watcher.until_names("n1", "n2")
        path.rename(away)
        watcher.until(lambda: str(path) in watcher.troubles)
        assert not watcher.gone()
        (away / "a.yaml").write_text(text(node("n1"), node("n3")))
        away.rename(path)
        watcher.until_names("n1", "n3")
        watcher.until(lambda: not watcher.troubles)
        assert watcher.gone() == [Deleted("Node", "n2")]


def test_an_unmounted_folder_takes_nothing_with_it(tmp_path: Path) -> None:
    path = tmp_path / "mount"
    path.mkdir()
    (path / "a.yaml").write_text(text(node("n1")))
    (tmp_path / "beneath").mkdir()
    with following(path) as watcher:
        watcher.until_names("n1")
        path.rename(tmp_path / "away")
        (tmp_path / "beneath").rename(path)
        watcher.until(lambda: "no manifests" in str(watcher.troubles.get(str(path))))
        assert not watcher.gone()
        (path / "b.yaml").write_text(text(node("n2")))
        watcher.until_names("n2")
        watcher.until(lambda: not watcher.troubles)


def test_a_folder_that_vanishes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "here"
    path.mkdir()
    for name in ("a", "b"):
        (path / f"{name}.yaml").write_text(text(node(name)))
    store = DirectoryStore(path)
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
    with following(tmp_path) as watcher:
        watcher.until_names("n1")
        (tmp_path / "a.yaml").unlink()
        watcher.until_names()
        assert not watcher.troubles


def test_stop_and_errors_of_the_receiver_end_a_watch_and_leave_nothing_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with following(tmp_path) as watcher:
        watcher.until(lambda: len(watcher.history) == len(KINDS))

    def refuse(changes: Sequence[Change]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        DirectoryStore(tmp_path).watch(refuse, threading.Event())
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
