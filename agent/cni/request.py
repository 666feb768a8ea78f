"""What a call names, and as which error of CNI a failure is told."""

from __future__ import annotations

from agent.cni.netconf import NAME
from agent.cni.protocol import Call
from agent.codec.json_fields import LINK_NAME
from agent.errors import CniError, Code
from agent.kernel import netns


def identity(call: Call) -> tuple[str, str]:
    """Container and interface name: the attachment that a call is about. Raises CniError 4."""
    if not NAME.fullmatch(call.container_id):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_CONTAINERID: {call.container_id!r} is not allowed",
            "letters, digits, _ . and -, beginning with a letter or digit",
        )
    if not LINK_NAME.fullmatch(call.ifname) or call.ifname in (".", ".."):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_IFNAME: {call.ifname!r} is not allowed",
            "1 to 15 characters, no blank, / : or %",
        )
    return call.container_id, call.ifname


def pod_netns(call: Call) -> int:
    """The descriptor of the pod's namespace, neither missing nor the node's own. Raises CniError 3 or 4."""
    if call.netns_fd is None:
        raise CniError(
            Code.UNKNOWN_CONTAINER,
            f"CNI_NETNS: {call.netns!r} can't be opened: {call.netns_error or 'it is not set'}",
            "the container is gone, or the runtime gave a wrong path",
        )
    if netns.same_netns(call.netns_fd):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_NETNS: {call.netns!r} is the node's own namespace",
            "give the pod's",
        )
    return call.netns_fd


def code(error: BaseException) -> Code:
    """The code by which the server tells an error."""
    if isinstance(error, CniError):
        return error.code
    return Code.TRY_AGAIN if isinstance(error, netns.NetnsLostError) else Code.INTERNAL
