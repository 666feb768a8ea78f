"""Read the request in a call: the attachment, the pod's namespace, and the addresses."""

from __future__ import annotations

from agent.cni.netconf import NetConf
from agent.cni.protocol import Call
from agent.codec import cni_args
from agent.codec.json_fields import CNI_NAME, CNI_NAME_ALLOWED, LINK_NAME_ALLOWED, is_link_name
from agent.errors import CniError, Code
from agent.ipam.assign.address_request import AddressRequest
from agent.kernel import netns


def attachment_key(call: Call) -> tuple[str, str]:
    """Return container and interface name: the identity of the attachment. Raises CniError 4."""
    if not CNI_NAME.fullmatch(call.container_id):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_CONTAINERID: {call.container_id!r} is not allowed",
            CNI_NAME_ALLOWED,
        )
    if not is_link_name(call.ifname):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_IFNAME: {call.ifname!r} is not allowed",
            LINK_NAME_ALLOWED,
        )
    return call.container_id, call.ifname


def pod_netns(call: Call) -> int:
    """Return the descriptor of the pod's namespace. Raises CniError 3 if it is missing, 4 if it is the node's."""
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
            "give the namespace of the pod",
        )
    return call.netns_fd


def address_request(call: Call, conf: NetConf, *, egress_limited: bool) -> AddressRequest:
    """Return the request of an ADD to IPAM. Raises CniError 4 or 7."""
    container_id, ifname = attachment_key(call)
    return AddressRequest(
        container_id,
        ifname,
        call.netns,
        conf.network,
        cni_args.pod(call.args),
        conf.ips,
        conf.mac or "",
        probe=conf.probe,
        egress_limited=egress_limited,
    )


def error_code(error: BaseException) -> Code:
    """Return the code with which the server answers an error."""
    if isinstance(error, CniError):
        return error.code
    return Code.TRY_AGAIN if isinstance(error, netns.NetnsLostError) else Code.INTERNAL
