"""YAML that others wrote: the one place that reads it, with one error for all that can be wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

DEPTH = 100  # levels of nesting
BITS = 128  # of a whole number: those of an IPv6 address
_INDENT = re.compile("(?:^|[\r\x85\u2028\u2029])[ \\t?:-]+", re.MULTILINE)
FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast


class Loader(FAST):  # type: ignore[misc]  # its class is chosen above
    """A loader that knows no number which can't be printed (0xfff... of 5,000 digits)."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """The number. Raises ValueError."""
        number: int = super().construct_yaml_int(node)
        if number.bit_length() > BITS:
            raise ValueError("a number that is too large")
        return number


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


class YamlError(ValueError):
    """A text that can't be used: what is wrong, and in which line (0: no certain one)."""

    def __init__(self, what: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {what}" if line else what)
        self.what = what
        self.line = line


def value(data: bytes) -> Any:  # noqa: ANN401 - any YAML value
    """The value of the only document in a text; None where there is none. Raises YamlError."""
    found = [doc for _node, doc in documents(data)]
    if len(found) > 1:
        raise YamlError("more than one document")
    return found[0] if found else None


def documents(data: bytes) -> Iterator[tuple[yaml.Node, Any]]:
    """Each document with the node that it was made of, which knows its lines. Raises YamlError."""
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
    """All that PyYAML raises for a bad text, dates and numbers included, as a YamlError."""
    try:
        yield
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise YamlError(f"is no YAML: {error.problem}", line) from error
    except RecursionError as error:
        raise YamlError("is nested too deeply") from error
    # a date of month 13, a number without digits, a key that is a list
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise YamlError(f"is no YAML: {str(error)[:500]}") from error


def _check_shape(text: str) -> None:
    """No aliases and no deep nesting, by the events of the text, which cost no memory and no stack.

    No object needs an alias, and a few lines of nested ones are gigabytes when they are written out. libyaml's
    loader calls itself for each level, and ends the process where its stack does.
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
    """Whether there may be aliases or deep nesting; most files need no second look."""
    if any(sign in text for sign in "*&!") or text.count("[") + text.count("{") > DEPTH:
        return True
    # a level of block style takes a column of blanks and indicators; a list may begin in its key's own
    return 2 * max((len(match[0]) for match in _INDENT.finditer(text)), default=0) > DEPTH
