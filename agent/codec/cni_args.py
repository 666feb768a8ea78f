"""Read CNI_ARGS (CNI conventions, CNI_ARGS)."""

from __future__ import annotations

from dataclasses import dataclass

from agent.errors import CniError, Code


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """A pod of Kubernetes, as kubelet names it in CNI_ARGS."""

    name: str
    """`namespace/name`."""
    uid: str = ""
    """Empty if kubelet gave none."""


def pod(args: str) -> PodIdentity | None:
    """Return the pod that CNI_ARGS name; None if they name none. Raises CniError 4."""
    found = pairs(args)
    namespace, name = found.get("K8S_POD_NAMESPACE"), found.get("K8S_POD_NAME")
    return PodIdentity(f"{namespace}/{name}", found.get("K8S_POD_UID", "")) if namespace and name else None


def pairs(args: str) -> dict[str, str]:
    """Return CNI_ARGS as pairs. An unknown key is an error unless IgnoreUnknown is true. Raises CniError 4."""
    found: dict[str, str] = {}
    for pair in filter(None, args.split(";")):
        key, sign, value = pair.partition("=")
        if not sign:
            raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_ARGS: {pair!r} has no =", "KEY=VALUE;KEY=VALUE")
        found[key] = value
    tolerant = found.pop("IgnoreUnknown", "false").lower() in ("1", "t", "true")
    unknown = [key for key in found if key not in ("IP", "MAC") and not key.startswith("K8S_POD_")]
    if unknown and not tolerant:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_ARGS: unknown key {unknown[0]!r}",
            "known: IP, MAC, K8S_POD_*; IgnoreUnknown=1 allows others",
        )
    return found
