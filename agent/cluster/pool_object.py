"""The spec of an IPPool (docs/reference/crds.md): read it, and write it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agent.cluster import object_fields
from agent.cluster.object_fields import ObjectError, short
from agent.ip import Address, Subnet
from agent.model.cluster import IPPool

DEFAULT_BLOCK_SIZE: Mapping[int, int] = {4: 24, 6: 122}
LARGEST_BLOCK_SIZE: Mapping[int, int] = {4: 30, 6: 126}  # smaller blocks leave a pod no address


def read(name: str, spec: dict[str, Any], version: str) -> IPPool:
    """Return the pool that a spec defines. Raises ObjectError, with a pool that gives no address as `stand_in`."""
    cidr = object_fields.cidr("spec.cidr", spec.get("cidr"))
    largest = LARGEST_BLOCK_SIZE[cidr.version]
    if cidr.prefixlen > largest:
        raise ObjectError("spec.cidr", f"{cidr} is too small for a block", f"a CIDR of /{largest} or larger")
    size = spec.get("blockSize")
    if size is None:
        size = max(DEFAULT_BLOCK_SIZE[cidr.version], cidr.prefixlen)
    if isinstance(size, bool) or not isinstance(size, int) or not cidr.prefixlen <= size <= largest:
        raise ObjectError(
            "spec.blockSize", f"is {short(size)}", f"a prefix length from {cidr.prefixlen} to {largest}"
        )
    try:
        return _limited(IPPool(name, cidr, size, version), spec)
    except ObjectError as error:  # which addresses it excludes is not known: none may be given
        error.stand_in = IPPool(name, cidr, size, version, exclude=(cidr,))
        raise


def _limited(pool: IPPool, spec: dict[str, Any]) -> IPPool:
    """Return the pool with its bounds, exclusions, gateway and namespaces. Raises ObjectError."""
    cidr = pool.cidr
    start, end = (_bound(cidr, spec, key) for key in ("start", "end"))
    if start and end and int(start) > int(end):
        raise ObjectError("spec.end", f"{end} is below start", f"an address not below {start}")
    items = enumerate(object_fields.items(spec, "spec.exclude"))
    exclude = dict.fromkeys(_excluded(cidr, f"spec.exclude[{n}]", item) for n, item in items)
    gateway = None if spec.get("gateway") is None else object_fields.address("spec.gateway", spec["gateway"])
    if gateway and gateway.version != cidr.version:
        raise ObjectError("spec.gateway", f"{gateway} is of another IP version", f"an address as {cidr} has them")
    allowed = _namespaces(spec)
    return replace(pool, start=start, end=end, exclude=tuple(exclude), gateway=gateway, namespaces=allowed)


def _namespaces(spec: dict[str, Any]) -> tuple[str, ...] | None:
    if spec.get("allowedNamespaces") is None:
        return None
    names = object_fields.items(spec, "spec.allowedNamespaces")
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise ObjectError(f"spec.allowedNamespaces[{number}]", f"is {short(name)}", "the name of a namespace")
    return tuple(dict.fromkeys(names))


def _bound(cidr: Subnet, spec: dict[str, Any], key: str) -> Address | None:
    if spec.get(key) is None:
        return None
    address = object_fields.address(f"spec.{key}", spec[key])
    if address not in cidr:
        raise ObjectError(f"spec.{key}", f"{address} is not in cidr", f"an address of {cidr}")
    return address


def _excluded(cidr: Subnet, path: str, value: object) -> Subnet:
    """Return an address or a CIDR of the pool as a CIDR. Raises ObjectError."""
    alone = isinstance(value, str) and "/" not in value
    subnet = ipaddress.ip_network(object_fields.address(path, value)) if alone else object_fields.cidr(path, value)
    if subnet.version != cidr.version or not subnet.subnet_of(cidr):  # type: ignore[arg-type]
        raise ObjectError(path, f"{short(value)} is not in cidr", f"an address or a CIDR of {cidr}")
    return subnet


def to_spec(pool: IPPool) -> dict[str, Any]:
    """Return the spec that defines a pool."""
    exclude = [str(e.network_address if e.prefixlen == e.max_prefixlen else e) for e in pool.exclude]
    bounds = {"start": pool.start, "end": pool.end, "gateway": pool.gateway}
    return {
        "cidr": str(pool.cidr),
        "blockSize": pool.block_size,
        **{key: str(value) for key, value in bounds.items() if value},
        **({"exclude": exclude} if exclude else {}),
        **({"allowedNamespaces": list(pool.namespaces)} if pool.namespaces is not None else {}),
    }
