"""Fields of Kubernetes documents as values; a wrong one is an ObjectError with path, fault and remedy."""

from __future__ import annotations

import ipaddress
import reprlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

from agent.ip import Address, Subnet
from agent.model.cluster import IPPool

T = TypeVar("T")
YEARS = range(1970, 9000)
AS_KUBERNETES = "write it as Kubernetes has it"

_repr = reprlib.Repr()  # a wrong value may be megabytes
_repr.maxstring = _repr.maxother = 80
short = _repr.repr


class ObjectError(ValueError):
    """A document that is no object of ours: the path of the field, what is wrong, how to fix it."""

    def __init__(self, path: str, what: str, remedy: str) -> None:
        super().__init__(f"{path}: {what}; {remedy}")
        self.path = path
        self.what = what
        self.remedy = remedy
        self.closed: IPPool | None = None
        """The pool without any address for pods: it stands in for one of which no good state is known."""


Faults = list[ObjectError]
"""What is wrong with an object that can be used without the faulty fields."""


def mapping(doc: dict[str, Any], path: str) -> dict[str, Any]:
    """A field that is an object, empty where it is absent. Raises ObjectError."""
    value = doc.get(path.rpartition(".")[2])
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ObjectError(path, f"is {short(value)}, not a mapping", AS_KUBERNETES)
    return value


def items(doc: dict[str, Any], path: str) -> list[Any]:
    """A field that is a list, empty where it is absent. Raises ObjectError."""
    value = doc.get(path.rpartition(".")[2]) or []
    if not isinstance(value, list):
        raise ObjectError(path, f"is {short(value)}, not a list", AS_KUBERNETES)
    return value


def tolerant(faults: Faults, default: T, parse: Callable[..., T], *arguments: object) -> T:
    """What `parse` returns for the arguments, or the default and one fault more."""
    try:
        return parse(*arguments)
    except ObjectError as error:
        faults.append(error)
        return default


def each(faults: Faults, path: str, values: list[Any], parse: Callable[[str, Any], T]) -> Iterator[T]:
    """Every element that can be used; one that can't costs only itself."""
    for number, value in enumerate(values):
        try:
            yield parse(f"{path}[{number}]", value)
        except ObjectError as error:
            faults.append(error)


def cidr(path: str, value: object) -> Subnet:
    """A CIDR. Raises ObjectError."""
    remedy = "a CIDR with no host bits set, such as 10.244.1.0/24"
    # ipaddress would take a netmask, a zone or a bare address as well; Kubernetes doesn't
    if not isinstance(value, str) or "%" in value or not value.partition("/")[2].isdecimal():
        raise ObjectError(path, f"is {short(value)}", remedy)
    try:
        return ipaddress.ip_network(value)
    except ValueError as error:
        raise ObjectError(path, str(error)[:120], remedy) from error


def address(path: str, value: object) -> Address:
    """An IP address without a zone. Raises ObjectError."""
    remedy = "an IP address such as 192.0.2.1"
    if not isinstance(value, str) or "%" in value:
        raise ObjectError(path, f"is {short(value)}", remedy)
    try:
        return ipaddress.ip_address(value)
    except ValueError as error:
        raise ObjectError(path, f"is {short(value)}", remedy) from error


def time(path: str, value: object) -> datetime:
    """A time, of UTC where it names no zone (RFC 3339). Raises ObjectError."""
    remedy = "a time as in RFC 3339, such as 2026-01-31T12:00:00Z"
    try:  # YAML makes a time of what has no quotes
        when = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        when = when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise ObjectError(path, f"is {short(value)}", remedy) from error
    if when.year not in YEARS:  # nothing may be added to the last years that there are
        raise ObjectError(path, f"is {short(value)}", f"{remedy}, from {YEARS[0]} on")
    return when


def created(metadata: dict[str, Any]) -> str:
    """When the object was created, in a form that sorts by time; empty where nobody says. Raises ObjectError."""
    value = metadata.get("creationTimestamp")
    return "" if value is None else time("metadata.creationTimestamp", value).astimezone(UTC).isoformat()


def rfc3339(when: datetime) -> str:
    """Return a time as Kubernetes writes it (RFC 3339), to the second."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
