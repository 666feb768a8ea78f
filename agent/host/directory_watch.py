"""Threads that wake a controller when files of a directory change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from agent.kernel.inotify import DirectoryWatch

REATTACH = 30.0  # seconds after which a watch is looked at again


def watch(directories: Mapping[str, Path], wake: Callable[[], None], stop: threading.Event) -> None:
    """Call `wake` after each change of one of the directories until `stop` is set; keys are the threads' names.

    Changes after this call are noticed. A directory may be missing, come and go.
    """
    for name, directory in directories.items():
        # made here and not in the thread, so that nothing is missed until it runs
        arguments = (DirectoryWatch(directory), wake, stop)
        threading.Thread(target=_follow, args=arguments, name=name, daemon=True).start()


def _follow(watched: DirectoryWatch, wake: Callable[[], None], stop: threading.Event) -> None:
    with closing(watched):
        while not stop.is_set():
            if watched.wait(stop, REATTACH):
                wake()
