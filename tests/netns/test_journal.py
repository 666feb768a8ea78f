"""Journaled DELs against real pods: each is done once, and never to a pod that came after it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.cni.journal import BOOT_ID, Journal
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from tests.netns.node import CONF, Host, Pod, command


class Node:
    """A node with a journal, whose agent can be started again."""

    def __init__(self, folder: Path) -> None:
        self.run_dir, self.state = folder / "run", folder / "state"
        for path in (self.run_dir, self.state / "deletes"):
            path.mkdir(parents=True)
        self.host = Host(self.run_dir)
        self.problems = PartProblems("journal")
        self.restart()

    def restart(self) -> None:
        self.problems = PartProblems("journal")
        done = self.run_dir / "deletes-done"
        self.journal = Journal(self.state, self.host.handler.answer, done, self.problems)
        self.journal.prepare()

    def write(self, name: str = "1.json", boot: str = "", age: float = 0.0) -> Path:
        """Journal a DEL of the pod c1, as if `age` seconds ago."""
        doc = {"protocol": 1, "command": "DEL", "containerID": "c1", "ifname": "eth0", "config": json.dumps(CONF)}
        path = self.state / "deletes" / name
        path.write_text(json.dumps({**doc, **({"bootID": boot} if boot else {})}))
        os.utime(path, (time.time() - age,) * 2)
        return path

    @property
    def has_pod(self) -> bool:
        return self.host.attachments.get("c1", "eth0") is not None


def test_the_next_pod_lives_though_a_journaled_del_can_not_be_removed(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.host.add(Pod("c1"))
    command("mount", "-t", "tmpfs", "state", str(node.state))
    (node.state / "deletes").mkdir()
    entry = node.write(age=-1)
    command("mount", "-o", "remount,ro", str(node.state))
    assert node.journal.replay() == 1
    assert not node.has_pod
    what = "it is finished, but can't be removed: Read-only file system"
    told = [Problem(f"journaled DEL {entry}", what, "make the state-dir writable, or remove it yourself")]
    assert [*node.problems.get().values()] == told
    pod = Pod("c1")
    node.host.add(pod)
    os.utime(next((node.run_dir / "attachments").iterdir()), (1, 1))  # no clock is needed for what was done once
    for restart in (False, True, True):
        if restart:
            node.restart()
        assert node.journal.replay() == 0
        assert [*node.problems.get().values()] == told, "the same words each time"
        assert node.has_pod
    assert pod.reaches("10.244.1.1")
    command("mount", "-o", "remount,rw", str(node.state))
    assert node.journal.replay() == 0
    assert (node.has_pod, entry.exists(), node.problems.get()) == (True, False, {})
    node.write(age=-1)  # another entry of that name is another DEL
    assert node.journal.replay() == 1


OLD: dict[str, Callable[[Node], Path]] = {
    "before the pod": lambda node: node.write(age=60),
    "before the pod, of this boot": lambda node: node.write(boot=BOOT_ID.read_text().strip(), age=60),
    "before a reboot that set the clock back": lambda node: node.write(boot="another", age=-3600),
}


@pytest.mark.parametrize("write", OLD.values(), ids=OLD)
def test_a_journaled_del_does_nothing_to_a_pod_that_came_after_it(
    tmp_path: Path, write: Callable[[Node], Path]
) -> None:
    node = Node(tmp_path)
    node.host.add(Pod("c1"))
    entry = write(node)
    assert node.journal.replay() == 1
    assert (node.has_pod, entry.exists()) == (True, False)


def test_of_the_same_moment_the_pod_wins(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.host.add(Pod("c1"))
    entry = node.write()
    made = next((node.run_dir / "attachments").iterdir()).stat()
    os.utime(entry, ns=(made.st_mtime_ns, made.st_mtime_ns))
    node.journal.replay()
    assert node.has_pod


@pytest.mark.parametrize("boot", ["", BOOT_ID.read_text().strip()], ids=["older plugin", "this boot"])
def test_a_journaled_del_removes_the_pod_that_was_there_before(tmp_path: Path, boot: str) -> None:
    node = Node(tmp_path)
    node.host.add(Pod("c1"))
    entry = node.write(boot=boot, age=-1)
    assert node.journal.replay() == 1
    assert (node.has_pod, entry.exists()) == (False, False)
