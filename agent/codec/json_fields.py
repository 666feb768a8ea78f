"""Convert fields of a JSON object to values; a wrong field is CNI error 7 with path, value and allowed values."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from agent.errors import CniError, Code, invalid_config
from agent.ip import Address, Subnet

CNI_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")  # CNI specification 1.1: network names and container IDs
CNI_NAME_ALLOWED = "letters, digits, _ . and -, beginning with a letter or digit"
LINK_NAME = re.compile(r"[^\s/:%]{1,15}")  # dev_valid_name() of the kernel; % would be a pattern
LINK_NAME_ALLOWED = "1 to 15 characters, no blank, / : or %"
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
T = TypeVar("T")
D = TypeVar("D")


class Fields:
    """A JSON object whose fields are taken one by one; a field that was not taken is an error."""

    def __init__(self, doc: object, where: str, allowed: str = "a JSON object") -> None:
        if not isinstance(doc, dict):
            raise invalid_config(where or "netconf", doc, allowed)
        self._doc: dict[str, Any] = doc
        self._where = f"{where}." if where else ""
        self._taken: list[str] = []

    def take(self, name: str, parse: Callable[[str, Any], T], default: D) -> T | D:
        """Return the parsed field, or the default if it is absent or null."""
        self._taken.append(name)
        value = self._doc.get(name)
        return default if value is None else parse(self._where + name, value)

    def has(self, name: str) -> bool:
        """Return whether the object has the field, also if it is null."""
        return name in self._doc

    def raw(self, name: str) -> object:
        """Return the field as it is, None where it is absent."""
        return self._doc.get(name)

    def finish(self, ignored: frozenset[str] = frozenset()) -> None:
        """Raise CniError 7 for the first unknown field; keys with a `/` are for other programs."""
        for name, value in self._doc.items():
            if name not in self._taken and name not in ignored and "/" not in name:
                raise CniError(
                    Code.INVALID_CONFIG,
                    f"unknown field {self._where + name} (value {value!r})",
                    f"allowed: {', '.join(sorted({*self._taken, *ignored}))}",
                )


def address(where: str, value: object) -> Address:
    """Return an IP address without a mask. Raises CniError 7."""
    try:
        if isinstance(value, str) and "%" not in value:  # a zone has a meaning on one machine only
            return ipaddress.ip_address(value)
    except ValueError:
        pass
    raise invalid_config(where, value, "an IP address such as 10.244.1.5")


def boolean(where: str, value: object) -> bool:
    """Return true or false. Raises CniError 7."""
    if not isinstance(value, bool):
        raise invalid_config(where, value, "true, false")
    return value


def number(where: str, value: object, low: int, high: int) -> int:
    """Return a whole number from `low` to `high`. Raises CniError 7."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid_config(where, value, f"{low} to {high}")
    return value


def listed(where: str, value: object, of: str) -> list[Any]:
    """Return a list; `of` names its items in the error. Raises CniError 7."""
    if not isinstance(value, list):
        raise invalid_config(where, value, f"a list of {of}")
    return value


def destination(where: str, value: object) -> Subnet:
    """Return a CIDR. Raises CniError 7."""
    try:
        if isinstance(value, str) and "%" not in value:
            return ipaddress.ip_network(value)
    except ValueError:
        pass
    raise invalid_config(where, value, "a CIDR with no host bits set, such as 10.0.0.0/8 or 0.0.0.0/0")


def destinations(where: str, value: object) -> tuple[Subnet, ...]:
    """Return a list of CIDRs. Raises CniError 7."""
    return tuple(
        destination(f"{where}[{number}]", item) for number, item in enumerate(listed(where, value, "CIDRs"))
    )


def choice(where: str, value: object, allowed: Collection[str]) -> str:
    """Return one of the allowed texts. Raises CniError 7."""
    if not isinstance(value, str) or value not in allowed:
        raise invalid_config(where, value, ", ".join(allowed))
    return value


def link_name(where: str, value: object) -> str:
    """Return the name of an interface. Raises CniError 7."""
    if not isinstance(value, str) or not is_link_name(value):
        raise invalid_config(where, value, f"an interface name: {LINK_NAME_ALLOWED}")
    return value


def is_link_name(text: str) -> bool:
    """Return whether an interface can have this name."""
    return bool(LINK_NAME.fullmatch(text)) and text not in (".", "..")


def string(where: str, value: object) -> str:
    """Return a string. Raises CniError 7."""
    if not isinstance(value, str):
        raise invalid_config(where, value, "a string")
    return value


def strings(where: str, value: object) -> list[str]:
    """Return a list of strings. Raises CniError 7."""
    return [string(f"{where}[{number}]", item) for number, item in enumerate(listed(where, value, "strings"))]


def addresses(where: str, value: object) -> tuple[Address, ...]:
    """Return a list of IP addresses, each given with or without a mask. Raises CniError 7."""
    items = listed(where, value, "IP addresses, each with or without a mask")
    return tuple(masked(f"{where}[{number}]", item) for number, item in enumerate(items))


def masked(where: str, value: object) -> Address:
    """Return an IP address, given with or without a mask. Raises CniError 7."""
    return address(where, value.partition("/")[0] if isinstance(value, str) else value)


def nested(where: str, value: object) -> Fields:
    """Return an object as Fields. Raises CniError 7."""
    return Fields(value, where)


def mac(where: str, value: object) -> str:
    """Return a unicast MAC address in lower case with colons. Raises CniError 7."""
    text = value.lower().replace("-", ":") if isinstance(value, str) else ""
    if not MAC.fullmatch(text) or int(text[:2], 16) & 1 or text == "00:00:00:00:00:00":
        raise invalid_config(where, value, "a unicast MAC address such as 0a:58:0a:f4:01:05")
    return text


def path(where: str, value: object, longest: int) -> str:
    """Return an absolute path of at most `longest` bytes. Raises CniError 7."""
    text = value if isinstance(value, str) else ""
    if not text.startswith("/") or "\0" in text or len(text.encode(errors="replace")) > longest:
        raise invalid_config(where, value, f"an absolute path of at most {longest} bytes")
    return text


def seconds(where: str, value: object, longest: int) -> float:
    """Return a number of seconds, with fractions. Raises CniError 7."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= longest:
        raise invalid_config(where, value, f"a number of seconds from 0 to {longest}")
    return value


def mapping(where: str, value: object) -> dict[str, Any]:
    """Return a JSON object. Raises CniError 7."""
    if not isinstance(value, dict):
        raise invalid_config(where, value, "a JSON object")
    return value
