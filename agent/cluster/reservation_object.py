"""The spec of an IPReservation (docs/reference/crds.md): read it, and write it."""

from __future__ import annotations

from typing import Any

from agent.cluster import object_fields
from agent.cluster.object_fields import ObjectError, rfc3339, short
from agent.ip import address_name
from agent.model.cluster import KEEPS, IPReservation

AGENTS = "pod, node and since, which agents write"


def read(name: str, spec: dict[str, Any], version: str) -> IPReservation:
    """Return the reservation that a spec defines. Raises ObjectError."""
    address = object_fields.address("spec.address", spec.get("address"))
    if name != address_name(address):
        what = f"the reservation of {address} is named {address_name(address)}"
        raise ObjectError("metadata.name", f"is {name}", what)
    _check_texts(spec)
    if not spec.get("node"):  # a person reserved it; agents write the other fields
        return IPReservation(
            address, spec["owner"], network=spec.get("network", ""), resource_version=version, keep=_keep(spec)
        )
    return IPReservation(
        address,
        spec["owner"],
        spec["pod"],
        spec["node"],
        spec["network"],
        object_fields.time("spec.since", spec.get("since")),
        object_fields.time("spec.released", spec["released"]) if spec.get("released") is not None else None,
        spec.get("asks", ""),
        spec.get("refused", ""),
        version,
        _keep(spec),
    )


def _check_texts(spec: dict[str, Any]) -> None:
    """Check the fields that are texts; with a pod, all of them are needed. Raises ObjectError."""
    agents = any(key in spec for key in ("pod", "node", "since"))
    for key in ("owner", "pod", "node", "network"):
        value = spec.get(key)
        if (agents or key == "owner" or value is not None) and (not isinstance(value, str) or not value):
            remedy = (
                f"name the {key}" if key == "owner" or not agents else f"name the {key}, or leave out {AGENTS}"
            )
            raise ObjectError(f"spec.{key}", f"is {short(value)}", remedy)
    for key in ("asks", "refused"):
        if not isinstance(spec.get(key, ""), str):
            raise ObjectError(f"spec.{key}", f"is {short(spec[key])}, not a string", "write text, or leave it out")


def _keep(spec: dict[str, Any]) -> str:
    keep = spec.get("keep", "")
    if keep not in ("", *KEEPS):
        raise ObjectError("spec.keep", f"is {short(keep)}", f"{' or '.join(KEEPS)}, or leave it out")
    return str(keep)


def to_spec(obj: IPReservation) -> dict[str, Any]:
    """Return the spec that defines a reservation."""
    texts = {"owner": obj.owner, "pod": obj.pod, "node": obj.node, "network": obj.network}
    times = {"since": obj.since, "released": obj.released}
    more = {"asks": obj.asks, "refused": obj.refused, "keep": obj.keep}
    return {
        "address": str(obj.address),
        **{key: text for key, text in texts.items() if text},
        **{key: rfc3339(when) for key, when in times.items() if when},
        **{key: text for key, text in more.items() if text},
    }
