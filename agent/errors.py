"""Define the errors that a container runtime gets: a CNI error code, a message, and how to fix it.

Codes below 100 are those of the CNI specification 1.1, section "Error".
"""

from __future__ import annotations

import enum
import errno
from typing import NoReturn


class Code(enum.IntEnum):
    """The error codes of the CNI specification 1.1, and testcni's own from 100 on."""

    INCOMPATIBLE_VERSION = 1
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50
    KERNEL = 100
    CHECK_FAILED = 101
    ADDRESSES = 102
    INTERNAL = 999


MAC_REMEDY = "give the MAC to testcni: runtimeConfig.mac (capability `mac`), args.cni.mac or CNI_ARGS MAC"


class CniError(Exception):
    """A CNI verb failed; the runtime gets `msg` (what and where) and `details` (how to fix it)."""

    def __init__(self, code: Code, msg: str, details: str = "") -> None:
        super().__init__(f"{msg} ({details})" if details else msg)
        self.code = code
        self.msg = msg
        self.details = details


DISK_REMEDY = "free space on this file system, or make it writable; files of a tmpfs, such as /run, use memory"
UNSEEN_MAC_REMEDY = 'write "capabilities": {"mac": true} into the entry of testcni, too'


def invalid_config(field: str, value: object, allowed: str) -> CniError:
    """Return the error for a wrong netconf field, with the field, its value and what is allowed."""
    return CniError(Code.INVALID_CONFIG, f"{field}: {value!r} is not allowed", f"allowed: {allowed}")


def raise_os(error: OSError, doing: str) -> NoReturn:
    """Raise CniError: code 5 for errors of a disk, code 100 for others."""
    if error.errno in (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT):
        of_a_file = error.filename and error.errno != errno.EIO  # the kernel's interfaces have these errors, too
        remedy = DISK_REMEDY if of_a_file else ""
        raise CniError(Code.IO_FAILURE, f"{doing}: {error}", remedy) from error
    raise CniError(Code.KERNEL, f"{doing}: {error}") from error
