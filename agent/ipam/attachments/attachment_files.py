"""The files of attachments: one small file for each, in a folder of the run-dir.

A file is written before the kernel is changed, and removed after the kernel's state is, so that a crash leaves
nothing without a file. It has the suffix .new and one line, the attachment; once the pod is wired, it has a second
line, the result of ADD, and the suffix .json.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Collection
from pathlib import Path

from agent.codec.network_json import OptionTypes
from agent.ipam.attachments import unreadable_attachments
from agent.ipam.attachments.attachment import Attachment, decode, encode, link_name
from agent.ipam.attachments.unreadable_attachments import UnreadableAttachment
from agent.runtime import atomic_file

AT_WORK, WIRED, REJECTED = ".new", ".json", ".bad"  # suffixes; early agents renamed unusable files to the last one

log = logging.getLogger(__name__)


class AttachmentFiles:
    """Reads and writes the files of one folder. The caller lets only one thread write at a time."""

    def __init__(self, folder: Path, types: OptionTypes) -> None:
        """`types`: the options of the modes that the agent knows; an attachment of another is unreadable."""
        self._folder = folder
        self._types = types

    def load(self) -> tuple[list[Attachment], list[UnreadableAttachment]]:
        """Return the attachments of an earlier run. A file that cannot be used stays as it is. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found: dict[tuple[str, str], Attachment] = {}
        unreadable = []
        for path in sorted(self._folder.iterdir()):
            if path.suffix not in (WIRED, AT_WORK, REJECTED):
                continue
            try:
                attachment = self._read(path, found.keys())
                found[attachment.key] = attachment
            except (ValueError, OSError) as error:
                log.error("attachment file %s cannot be used: %s", path, error)
                unreadable.append(
                    unreadable_attachments.describe(path, f"it cannot be used: {error}", self._types)
                )
        return list(found.values()), unreadable

    def _read(self, path: Path, known: Collection[tuple[str, str]]) -> Attachment:
        """Return the attachment of a file. Raises ValueError, OSError."""
        attachment = decode(atomic_file.read(path), self._types, whole=path.suffix != AT_WORK)
        if path.stem != attachment.link:
            raise ValueError(f"it is named {path.name}, but its attachment has the link {attachment.link}")
        if attachment.key in known or (path.suffix == REJECTED and path.with_suffix(WIRED).exists()):
            raise ValueError("another file is of the same attachment")
        if path.suffix == REJECTED:  # this agent can read it
            path.rename(path.with_suffix(WIRED))
        return attachment

    def create(self, attachment: Attachment) -> None:
        """Write the first line, before the kernel is touched. Raises OSError, and leaves no file then."""
        _write(self._path(attachment, AT_WORK), encode(attachment), os.O_CREAT | os.O_EXCL)

    def finish(self, attachment: Attachment) -> None:
        """Add the second line: the result of ADD. Raises OSError."""
        path = self._path(attachment, AT_WORK)
        _write(path, json.dumps(attachment.wired).encode(), os.O_APPEND)
        os.rename(path, self._path(attachment, WIRED))

    def remove(self, attachment: Attachment) -> None:
        """Remove the file, if it is there. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(attachment, AT_WORK if attachment.wired is None else WIRED))

    def restore(self, attachments: Collection[Attachment]) -> None:
        """Write files of wired attachments again that were removed by others. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = {path.name for path in self._folder.iterdir()}
        lost = [a for a in attachments if a.wired is not None and f"{a.link}{WIRED}" not in there]
        for attachment in lost:
            _write(path := self._path(attachment, ".lost"), encode(attachment), os.O_CREAT | os.O_TRUNC)
            _write(path, json.dumps(attachment.wired).encode(), os.O_APPEND)
            os.rename(path, self._path(attachment, WIRED))
        if lost:
            log.warning("%s: files of %d attachments were removed and are written again", self._folder, len(lost))

    def written(self, container_id: str, ifname: str) -> int:
        """Return when the file of an attachment was written (ns of the wall clock), or 0. Raises OSError."""
        found = self._folder.glob(f"{link_name(container_id, ifname)}.*")
        return max((path.stat().st_mtime_ns for path in found), default=0)

    def _path(self, attachment: Attachment, suffix: str) -> str:
        return f"{self._folder}/{attachment.link}{suffix}"


def remove_unreadable(path: Path) -> None:
    """Remove a file; anything else in its place is renamed, so that it is not lost. Raises OSError."""
    try:
        path.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):
        path.rename(path.with_name(f".{path.name}.removed"))


def discard_if_unused(path: Path) -> bool:
    """Return whether a file without a link can be ignored; remove it if its first line is incomplete.

    An ADD that was killed while it wrote the first line had not changed the kernel. A file with the suffix .bad
    was left by an early agent; it stays for a person to read.
    """
    try:
        if path.suffix == AT_WORK and b"\n" not in atomic_file.read(path):
            path.unlink()
            return True
    except (OSError, ValueError):
        return False
    return path.suffix == REJECTED


def _write(path: str, line: bytes, flags: int) -> None:
    """Write a line; a new file is removed if that fails. A FIFO without a reader fails at once. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags, 0o600)
    try:
        if os.write(fd, line + b"\n") <= len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    except OSError as error:
        error.filename = path  # the kernel does not name the file of a descriptor
        if flags & os.O_EXCL:
            os.unlink(path)
        raise
    finally:
        os.close(fd)
