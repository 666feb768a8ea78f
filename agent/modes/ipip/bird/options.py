"""Read the file with the BGP options of the cluster: AS number, passwords, routers outside the cluster.

It is not part of the netconf, because its passwords are files too (a ConfigMap and a Secret).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

from agent.codec import strict_yaml
from agent.codec.json_fields import Fields, address
from agent.codec.strict_yaml import YamlError
from agent.errors import CniError, invalid_config
from agent.model.problem import Problem
from agent.modes.ipip.bird.types import (
    AS_ALLOWED,
    AS_NUMBERS,
    DEFAULT_AS,
    BirdError,
    External,
    Secret,
    read_secret,
)
from agent.runtime import atomic_file
from agent.runtime.clock import SYSTEM_CLOCK, Clock
from agent.runtime.controller import Controller, ReportError, Schedule
from agent.runtime.observable import Observable

SCHEDULE = Schedule(resync=1.0)  # polled, as its passwords may be in other directories
READING = 0.01  # the largest part of the time that is spent reading
log = logging.getLogger(__name__)

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Router:
    """A router outside the cluster, and the labels of the nodes that have a session with it (none: all nodes)."""

    external: External
    selector: Labels = ()

    def selects(self, labels: Labels) -> bool:
        """Return whether a node with these labels has a session with it."""
        return set(self.selector) <= set(labels)


@dataclass(frozen=True, slots=True)
class BgpOptions:
    """The options in the file."""

    asn: int = DEFAULT_AS
    password: Secret | None = None
    """The password of the sessions between nodes."""
    routers: tuple[Router, ...] = ()


def read(path: Path) -> BgpOptions:
    """Return the file's options, with the passwords in the files that it names. Raises BirdError."""
    try:
        doc = strict_yaml.value(atomic_file.read(path))
        _refuse_blanks("the file", doc)
        return _parse(doc)
    except (OSError, YamlError) as error:
        raise BirdError(f"{path}: {error}", "write the file as docs/bgp.md has it") from error
    except CniError as error:
        raise BirdError(f"{path}: {error.msg}", error.details) from error


def _refuse_blanks(where: str, value: object) -> None:
    """Refuse null anywhere, as a blank password or an empty file must not mean no password. Raises CniError."""
    if value is None:
        raise invalid_config(where, value, "a value; for the default remove the line, or write {} into the file")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise invalid_config(f"the name {key!r} in {where}", key, "text as name of an option")
            _refuse_blanks(key if where == "the file" else f"{where}.{key}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _refuse_blanks(f"{where}[{number}]", inner)


def _parse(doc: object) -> BgpOptions:
    if not isinstance(doc, dict):
        raise invalid_config("the file", doc, "a mapping")
    fields = Fields(doc, "")
    asn = fields.take("asNumber", _as_number, DEFAULT_AS)
    password = fields.take("passwordFile", _password, None)
    routers = tuple(_routers(fields.take("peers", _list, [])))
    fields.finish()
    known: set[IPv4Address] = set()
    for number, router in enumerate(routers):
        if router.external.asn == asn:
            raise invalid_config(f"peers[{number}].asNumber", asn, "any but the cluster's own asNumber")
        if router.external.address in known:
            where = f"peers[{number}].address"
            raise invalid_config(where, str(router.external.address), "one entry for each address")
        known.add(router.external.address)
    return BgpOptions(asn, password, routers)


def _routers(entries: list[object]) -> Iterator[Router]:
    for number, entry in enumerate(entries):
        where = f"peers[{number}]"
        fields = Fields(entry, where, "a mapping")
        peer = fields.take("address", _ipv4, None)
        asn = fields.take("asNumber", _as_number, None)
        if peer is None or asn is None:
            raise invalid_config(where, entry, "a mapping with address and asNumber")
        external = External(
            peer,
            asn,
            fields.take("passwordFile", _password, None),
            fields.take("multihop", _boolean, False),
        )
        selector = fields.take("nodeSelector", _selector, ())
        fields.finish()
        yield Router(external, selector)


def _as_number(where: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in AS_NUMBERS:
        raise invalid_config(where, value, AS_ALLOWED)
    return value


def _ipv4(where: str, value: object) -> IPv4Address:
    found = address(where, value)
    if not isinstance(found, IPv4Address):
        raise invalid_config(where, value, "an IPv4 address: blocks of IPv6 are not announced")
    return found


def _password(where: str, value: object) -> Secret:
    if not isinstance(value, str) or not value.startswith("/"):
        raise invalid_config(where, value, "the absolute path of a file that holds the password")
    return read_secret(Path(value))


def _boolean(where: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise invalid_config(where, value, "true, false")
    return value


def _selector(where: str, value: object) -> Labels:
    if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise invalid_config(where, value, "a mapping of labels to their values, in quotes")
    return tuple(sorted(value.items()))


def _list(where: str, value: object) -> list[object]:
    if not isinstance(value, list):
        raise invalid_config(where, value, "a list of routers")
    return value


class OptionsFile(Controller):
    """Keeps the options of the file; while the file is invalid, the earlier options stay in force.

    There is no session before this agent has read the file once, because the file may ask for passwords.
    """

    def __init__(
        self,
        path: Path | None,
        report_error: ReportError,
        note: Path | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`note`: a file with the path of the options file that BIRD last had, for the next agent."""
        super().__init__(SCHEDULE, report_error, clock=clock)
        self._path = path
        self._note = note
        self._options = None if path else BgpOptions()
        self._took = 0.0
        """Seconds that it took to read the file."""
        self.said: Observable[BgpOptions | str | None] = Observable(None)
        """The options when the file was last read, or the error."""

    def once(self) -> bool:
        """Read the file and its passwords, and publish the options or the error."""
        if self._path:
            began = self._clock.now()
            try:
                self.said.publish(read(self._path))
            except BirdError as error:
                self.said.publish(str(error))
            self._took = self._clock.now() - began
        return True

    def pause(self) -> float:
        """Return the seconds to the next look: longer for a file that takes long to read."""
        return max(super().pause(), self._took / READING)

    @property
    def stands(self) -> bool:
        """Whether BIRD may go on as an earlier agent left it: it had read the same file."""
        if not self._note:
            return False
        try:
            return atomic_file.read(self._note).decode() == str(self._path)
        except (OSError, UnicodeError):
            return False

    @property
    def known(self) -> bool:
        """Whether the file was read successfully at some time, or there is none."""
        return self._options is not None

    def look(self) -> tuple[BgpOptions | None, tuple[Problem, ...]]:
        """Return the options in force (None: they are unknown), and faults of the file."""
        if not self._path:
            return self._options, ()
        try:
            found = read(self._path)
        except BirdError as error:
            problem = error.problem("bgp")
            if self._options is None:
                problem = replace(problem, what=f"{problem.what}; no BGP session starts before the file is valid")
            return self._options, (problem,)
        if self._options is None:
            self._take_note()
        elif found != self._options:
            _warn_of_lost_passwords(self._path, self._options, found)
        self._options = found
        return found, ()

    def _take_note(self) -> None:
        if self._note:
            try:
                atomic_file.beside(self._note, str(self._path)).rename(self._note)
            except OSError as error:
                log.warning("%s cannot be written: %s", self._note, error)


def _warn_of_lost_passwords(path: Path, old: BgpOptions, new: BgpOptions) -> None:
    """Log a warning if the file asks for fewer passwords than before."""
    if old.password and not new.password:
        log.warning("%s has no passwordFile any more: sessions between nodes continue without a password", path)
    before = {router.external.address for router in old.routers if router.external.password}
    for router in new.routers:
        if router.external.address in before and not router.external.password:
            log.warning("%s: the router %s has no passwordFile any more", path, router.external.address)
