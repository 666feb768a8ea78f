"""Check which namespaces may request which addresses: by annotations, netconf or CNI_ARGS."""

from __future__ import annotations

from agent.errors import CniError, Code
from agent.ip import Address
from agent.ipam import blocks
from agent.model.cluster import IPPool, Snapshot


def check_address(pod: str, address: Address, snapshot: Snapshot) -> None:
    """Raise CniError 102 if a pod (`namespace/name`, or empty) may not ask for an address."""
    for pool in snapshot.pools.values():
        if blocks.contains(pool.cidr, address):
            check_pool(pod, pool)


def check_pool(pod: str, pool: IPPool) -> None:
    """Raise CniError 102 if a pod (`namespace/name`, or empty) may not ask for addresses of the pool."""
    namespace = pod.partition("/")[0]
    if pool.namespaces is not None and namespace not in pool.namespaces:
        allowed = ", ".join(pool.namespaces) or "none"
        who = f"pods of namespace {namespace}" if namespace else "pods whose namespace CNI_ARGS do not name"
        what = f"{who} may not ask for addresses of IPPool {pool.name}"
        raise CniError(Code.ADDRESSES, what, f"its allowedNamespaces: {allowed}")
