"""Errors that reach a runtime: CNI error codes with a message and what to do about it.

Codes are those of the CNI specification 1.1, section "Error"; 100 and above are the plugin's own.
"""

from __future__ import annotations

import enum
import errno
from typing import NoReturn


class Code(enum.IntEnum):
    """Error codes of the CNI specification 1.1, and testcni's own from 100 on."""

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
    """A failure that the runtime is told of: `msg` says what and where, `details` how to mend it."""

    def __init__(self, code: Code, msg: str, details: str = "") -> None:
        super().__init__(f"{msg} ({details})" if details else msg)
        self.code = code
        self.msg = msg
        self.details = details


UNSEEN_MAC_REMEDY = 'write "capabilities": {"mac": true} into the entry of testcni, too'


def invalid_config(field: str, value: object, allowed: str) -> CniError:
    """The error for a netconf field that is wrong: it names field, value and what is allowed."""
    return CniError(Code.INVALID_CONFIG, f"{field}: {value!r} is not allowed", f"allowed: {allowed}")


def raise_os(error: OSError, doing: str) -> NoReturn:
    """Raise CniError 5 for what is the disk's fault, else that for the kernel's."""
    code = Code.IO_FAILURE if error.errno in (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT) else Code.KERNEL
    raise CniError(code, f"{doing}: {error}") from error
