"""CNI_ARGS as pairs (CNI conventions, CNI_ARGS)."""

from __future__ import annotations

from agent.errors import CniError, Code


def pairs(args: str) -> dict[str, str]:
    """CNI_ARGS as pairs; an unknown key is an error unless IgnoreUnknown is true (CNI conventions)."""
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
            "known: IP, MAC, K8S_POD_*; IgnoreUnknown=1 lets others pass",
        )
    return found
