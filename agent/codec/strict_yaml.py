"""Read YAML of others, with one error type for all faults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

DEPTH = 100  # levels of nesting
BITS = 128  # of a whole number: as many as an IPv6 address has
_INDENT = re.compile("(?:^|[\r\x85\u2028\u2029])[ \\t?:-]+", re.MULTILINE)
FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster


class Loader(FAST):  # type: ignore[misc]  # its class is chosen above
    """A loader that refuses numbers that Python cannot print (0xfff... of 5,000 digits)."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return the number. Raises ValueError."""
        number: int = super().construct_yaml_int(node)
        if number.bit_length() > BITS:
            raise ValueError("a number that is too large")
        return number


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


class YamlError(ValueError):
    """A text is not valid YAML: what is wrong, and in which line (0: unknown)."""

    def __init__(self, what: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {what}" if line else what)
        self.what = what
        self.line = line


def value(data: bytes) -> Any:  # noqa: ANN401 - any YAML value
    """Return the value of the only document in a text; None if there is none. Raises YamlError."""
    found = [doc for _node, doc in documents(data)]
    if len(found) > 1:
        raise YamlError("more than one document")
    return found[0] if found else None


def documents(data: bytes) -> Iterator[tuple[yaml.Node, Any]]:
    """Yield each document with its YAML node, which has its line numbers. Raises YamlError."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise YamlError("is not UTF-8", data.count(b"\n", 0, error.start) + 1) from error
    _check_shape(text)
    with _errors():
        loader = Loader(text)
    try:
        while True:
            with _errors():
                if not loader.check_node():
                    return
                node = loader.get_node()
                doc = loader.construct_document(node)
            yield node, doc
    finally:
        loader.dispose()


@contextmanager
def _errors() -> Iterator[None]:
    """Raise all exceptions of PyYAML for a faulty text, dates and numbers included, as YamlError."""
    try:
        yield
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise YamlError(f"is not YAML: {error.problem}", line) from error
    except RecursionError as error:
        raise YamlError("is nested too deeply") from error
    # a date of month 13, a number without digits, a key that is a list
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise YamlError(f"is not YAML: {str(error)[:500]}") from error


def _check_shape(text: str) -> None:
    """Refuse aliases and deep nesting, by parser events, which need little memory and stack. Raises YamlError.

    No object needs an alias, and a few lines of nested aliases expand to gigabytes. libyaml's loader is recursive,
    and crashes the process where the stack ends.
    """
    if not _is_suspect(text):
        return
    depth = 0
    with _errors():
        for event in yaml.parse(text, FAST):
            line = event.start_mark.line + 1 if event.start_mark else 0
            if isinstance(event, yaml.AliasEvent):
                raise YamlError("uses an alias (*); write the value out", line)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise YamlError(f"is nested deeper than {DEPTH} levels", line)


def _is_suspect(text: str) -> bool:
    """Return whether there may be aliases or deep nesting, which needs a closer check; most files have neither."""
    if any(sign in text for sign in "*&!") or text.count("[") + text.count("{") > DEPTH:
        return True
    # a level of block style takes a column of blanks and indicators; a list may begin in the column of its key
    return 2 * max((len(match[0]) for match in _INDENT.finditer(text)), default=0) > DEPTH
