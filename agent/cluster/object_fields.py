"""Convert fields of Kubernetes documents to values; a wrong field raises ObjectError with its path."""

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

LONGEST = 80  # characters of a wrong value in a message; the value may be megabytes


def short(value: object) -> str:
    """Return a value as text for a message, with at most LONGEST characters of each string in it."""
    text = reprlib.Repr()
    text.maxstring = text.maxother = LONGEST
    return text.repr(value)


class ObjectError(ValueError):
    """A document is not an object that testcni can use: the field's path, what is wrong, how to fix it."""

    def __init__(self, path: str, what: str, remedy: str) -> None:
        super().__init__(f"{path}: {what}; {remedy}")
        self.path = path
        self.what = what
        self.remedy = remedy
        self.stand_in: IPPool | None = None
        """A pool that gives no address. It replaces a faulty pool of which no good state is known."""


Faults = list[ObjectError]
"""The faults of an object that is used without its faulty fields."""


def mapping(doc: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a field that is an object, empty where it is absent. Raises ObjectError."""
    value = doc.get(path.rpartition(".")[2])
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ObjectError(path, f"is {short(value)}, not a mapping", AS_KUBERNETES)
    return value


def items(doc: dict[str, Any], path: str) -> list[Any]:
    """Return a field that is a list, empty where it is absent. Raises ObjectError."""
    value = doc.get(path.rpartition(".")[2]) or []
    if not isinstance(value, list):
        raise ObjectError(path, f"is {short(value)}, not a list", AS_KUBERNETES)
    return value


def tolerant(faults: Faults, default: T, parse: Callable[..., T], *arguments: object) -> T:
    """Return what `parse` returns for the arguments; on ObjectError add it to `faults` and return the default."""
    try:
        return parse(*arguments)
    except ObjectError as error:
        faults.append(error)
        return default


def each(faults: Faults, path: str, values: list[Any], parse: Callable[[str, Any], T]) -> Iterator[T]:
    """Yield every element that `parse` accepts; add the ObjectErrors of the others to `faults`."""
    for number, value in enumerate(values):
        try:
            yield parse(f"{path}[{number}]", value)
        except ObjectError as error:
            faults.append(error)


def cidr(path: str, value: object) -> Subnet:
    """Return a CIDR. Raises ObjectError."""
    remedy = "a CIDR with no host bits set, such as 10.244.1.0/24"
    # ipaddress accepts a netmask, a zone or a bare address as well; Kubernetes does not
    if not isinstance(value, str) or "%" in value or not value.partition("/")[2].isdecimal():
        raise ObjectError(path, f"is {short(value)}", remedy)
    try:
        return ipaddress.ip_network(value)
    except ValueError as error:
        raise ObjectError(path, str(error)[:120], remedy) from error


def address(path: str, value: object) -> Address:
    """Return an IP address without a zone. Raises ObjectError."""
    remedy = "an IP address such as 192.0.2.1"
    if not isinstance(value, str) or "%" in value:
        raise ObjectError(path, f"is {short(value)}", remedy)
    try:
        return ipaddress.ip_address(value)
    except ValueError as error:
        raise ObjectError(path, f"is {short(value)}", remedy) from error


def time(path: str, value: object) -> datetime:
    """Return a time (RFC 3339), in UTC where it has no zone. Raises ObjectError."""
    remedy = "a time as in RFC 3339, such as 2026-01-31T12:00:00Z"
    try:  # without quotes, YAML has parsed it already
        when = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        when = when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise ObjectError(path, f"is {short(value)}", remedy) from error
    if when.year not in YEARS:  # a later year overflows when a duration is added
        raise ObjectError(path, f"is {short(value)}", f"{remedy}, from {YEARS[0]} on")
    return when


def created(metadata: dict[str, Any]) -> str:
    """Return when an object was created, as text that sorts by time; empty if unknown. Raises ObjectError."""
    value = metadata.get("creationTimestamp")
    return "" if value is None else time("metadata.creationTimestamp", value).astimezone(UTC).isoformat()


def rfc3339(when: datetime) -> str:
    """Return a time as Kubernetes writes it (RFC 3339), to the second."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
