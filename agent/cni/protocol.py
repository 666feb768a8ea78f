"""What the plugin sends and what it gets back: one JSON object each way over the unix socket.

The request ends with the client's shutdown(SHUT_WR); the pod's namespace comes as a descriptor with it,
so the agent need not see the path in its own mount namespace. An answer with `code` is an error, `{}` is
success without output, anything else is the result for the plugin's stdout.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from agent.errors import CniError, Code

PROTOCOL = 1
FIELDS = {
    "command": "command",
    "container_id": "containerID",
    "ifname": "ifname",
    "netns": "netns",
    "netns_error": "netnsError",
    "args": "args",
    "config": "config",
}
REQUEST_LIMIT = 8 << 20  # bytes: a netconf of 1 MiB, each byte of it escaped


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the plugin: the CNI_* environment and the netconf as it stood on stdin."""

    command: str
    container_id: str = ""
    ifname: str = ""
    netns: str = ""
    netns_error: str = ""
    args: str = ""
    config: str = ""
    netns_fd: int | None = None


def decode(data: bytes, netns_fd: int | None) -> Call:
    """The call in a request; raises CniError 4 or 6."""
    try:
        doc = json.loads(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise CniError(Code.DECODING_FAILURE, f"the plugin's request is no JSON: {error}") from error
    if not isinstance(doc, dict) or doc.get("protocol") != PROTOCOL:
        found = doc.get("protocol") if isinstance(doc, dict) else type(doc).__name__
        raise CniError(
            Code.DECODING_FAILURE,
            f"the plugin speaks protocol {found!r}, this agent speaks {PROTOCOL}",
            "install the plugin and the agent of one version",
        )
    texts = {field: _text(doc, key) for field, key in FIELDS.items()}
    return Call(**texts, netns_fd=netns_fd)


def _text(doc: dict[str, Any], key: str) -> str:
    value = doc.get(key, "")
    if not isinstance(value, str):
        raise CniError(Code.DECODING_FAILURE, f"the plugin's {key} is {value!r}, not a string")
    _check_text(key, value)
    return value


def _check_text(key: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = Code.DECODING_FAILURE if key == "config" else Code.INVALID_ENVIRONMENT
        raise CniError(code, f"{key} is not UTF-8 at character {error.start}") from error


def encode_error(error: CniError, cni_version: str) -> bytes:
    """An error as CNI 1.1 has it."""
    doc: dict[str, Any] = {"cniVersion": cni_version, "code": int(error.code), "msg": error.msg}
    if error.details:
        doc["details"] = error.details
    return json.dumps(doc).encode()
