"""The protocol between plugin and agent: one JSON object in each direction over the unix socket.

The request ends with the client's shutdown(SHUT_WR). It brings the pod's namespace as a descriptor, so that the
agent need not see the path in its own mount namespace. An answer with `code` is an error, `{}` is success without
output, and any other answer is the result for the plugin's stdout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.codec import strict_json
from agent.codec.strict_json import JsonError
from agent.errors import CniError, Code

PROTOCOL = 1
FIELDS: Mapping[str, str] = {
    "command": "command",
    "container_id": "containerID",
    "ifname": "ifname",
    "netns": "netns",
    "netns_error": "netnsError",
    "args": "args",
    "config": "config",
    "boot_id": "bootID",
}
REQUEST_LIMIT = 8 << 20  # bytes: a netconf of 1 MiB, each byte of it escaped


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the plugin: the environment variables CNI_*, and the netconf from stdin."""

    command: str
    container_id: str = ""
    ifname: str = ""
    netns: str = ""
    netns_error: str = ""
    args: str = ""
    config: str = ""
    netns_fd: int | None = None
    boot_id: str = ""
    """The kernel's boot_id when a DEL was journaled; empty if an early plugin wrote it."""
    journaled: int | None = None
    """The time when it was journaled, in ns of the wall clock; 0: before the last boot; None: not journaled."""


def decode(data: bytes, netns_fd: int | None) -> Call:
    """Return the call in a request. Raises CniError 4 or 6."""
    try:
        doc = strict_json.tolerant(data)
    except JsonError as error:
        raise CniError(Code.DECODING_FAILURE, f"the plugin's request is no JSON object: {error}") from error
    if doc.get("protocol") != PROTOCOL:
        raise CniError(
            Code.DECODING_FAILURE,
            f"the plugin speaks protocol {str(doc.get('protocol'))[:80]}, this agent speaks {PROTOCOL}",
            "install the plugin and the agent of one version",
        )
    texts: dict[str, Any] = {field: _text(doc, key) for field, key in FIELDS.items()}
    return Call(**texts, netns_fd=netns_fd)


def _text(doc: dict[str, Any], key: str) -> str:
    value = doc.get(key, "")
    if not isinstance(value, str):
        raise CniError(Code.DECODING_FAILURE, f"the plugin's {key} is a {type(value).__name__}, not a string")
    if key != "config":  # its reader checks it, as a DEL needs no valid netconf
        _check_text(key, value)
    return value


def _check_text(key: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        what = f"{key} is not UTF-8 at character {error.start}"
        raise CniError(Code.INVALID_ENVIRONMENT, what) from error


def encode_error(error: CniError, cni_version: str) -> bytes:
    """Return an error in the form of CNI 1.1."""
    doc: dict[str, Any] = {"cniVersion": cni_version, "code": int(error.code), "msg": error.msg}
    if error.details:
        doc["details"] = error.details
    return json.dumps(doc).encode()
