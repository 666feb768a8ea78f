"""Folders of the host that were mounted into the agent's container, and are the host's no longer.

If such a folder is removed on the host and created again, the container keeps the removed one: nothing can be
created in it (ENOENT), and no other process sees it. Only a new container gets the new one.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping
from pathlib import Path

from agent.config import AgentConfig
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.runtime.controller import Controller, Schedule
from agent.runtime.shutdown import MustEndError

ENTRIES = 4096  # bytes: enough for any first entry
SCHEDULE = Schedule(resync=5.0, first=0.0)

_libc = ctypes.CDLL(None, use_errno=True)


class HostDirectories(Controller):
    """Looks for directories that were removed on the host."""

    def __init__(self, folders: Mapping[str, Path], problems: PartProblems) -> None:
        """`folders`: each directory by its option."""
        super().__init__(SCHEDULE, problems.report_error)
        self._problems = problems
        self._host_directories = dict(folders)
        self._always = {option for option, path in folders.items() if removed(path)}
        """The options of those that were removed before the start: a restart of the agent does not help then."""

    def once(self) -> bool:
        """Look at all directories. Raises MustEndError when one was removed since the agent started."""
        found = {option: path for option, path in self._host_directories.items() if removed(path)}
        self._always &= found.keys()
        for option, path in found.items():
            if option not in self._always:
                raise MustEndError(
                    f"{path} ({option}) was removed on the host, and this container has the removed one: "
                    "the agent ends, so that a new container mounts the new folder"
                )
        self._problems.publish({option: _problem(option, path) for option, path in found.items()})
        return True


def used_by(conf: AgentConfig) -> dict[str, Path]:
    """Return the directories of the host that an agent uses, by their options."""
    found = {
        "--conf-dir": conf.conf_dir,
        "--run-dir": conf.run_dir,
        "--state-dir": conf.state_dir,
        "--sysctl-dir": conf.sysctl_dir,
    }
    return {**found, "--bin-dir": conf.bin_dir} if conf.conflist else found


def removed(path: Path) -> bool:
    """Return whether a folder is mounted here that has no name any more on its own file system.

    Its link count is 0; on overlayfs, which counts 1 for a folder of several layers, it can't be listed
    (ENOENT, iterate_dir in fs/readdir.c).
    """
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False  # it is not there at all, or out of reach: who uses it reports that
    try:
        return os.fstat(folder).st_nlink == 0 or not _can_be_listed(folder)
    except OSError:
        return False
    finally:
        os.close(folder)


def _can_be_listed(folder: int) -> bool:
    """Return whether the kernel lists it, by getdents64(2): readdir(3) makes an empty folder of this error."""
    listed: int = _libc.getdents64(folder, ctypes.create_string_buffer(ENTRIES), ENTRIES)
    return listed >= 0 or ctypes.get_errno() != errno.ENOENT


def _problem(option: str, path: Path) -> Problem:
    what = f"is a folder that was removed on the host ({option}), so nothing written there is seen"
    return Problem(
        str(path), what, "make the folder on the host, then delete the agent's pod: a new one mounts it"
    )
