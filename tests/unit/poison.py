"""Texts that readers choke on, for tests of every reader with its real callers around it."""

from __future__ import annotations

DIGITS = "9" * 5000
JSON: dict[str, str] = {
    "5,000 digits": f'{{"name": "net", "x": {DIGITS}}}',
    "a float beyond all": '{"name": "net", "x": 1e999}',
    "NaN": '{"name": "net", "x": NaN}',
    "minus infinity": '{"name": "net", "x": -Infinity}',
    "deep lists": '{"name": "net", "x": ' + "[" * 900 + "]" * 900 + "}",
    "deeper than the interpreter": '{"name": "net", "x": ' + "[" * 100_000,
    "half a character": r'{"name": "net", "x": "\ud800"}',
    "a name given twice": '{"name": "net", "name": "other"}',
    "not UTF-8": '{"name": "net", "x": "\udcff"}',
    "a byte order mark": '\ufeff{"name": "net"}',
    "cut off": '{"name": "net", "x": ',
    "a list": "[]",
    "nothing": "",
    "zeros": "\0" * 100,
}
YAML: dict[str, str] = {
    "a flow that is deep": "a: " + "[" * 100_000,
    "a block that is deep": "- " * 100_000,
    "a hexadecimal number": "a: 0x" + "f" * 5000,
    "5,000 digits": f"a: {DIGITS}",
    "a number of base 60": "a: 1" + ":59" * 4000,
    "month 13": "a: 2026-13-45",
    "a zone of 99 hours": "a: 2001-12-14 21:59:43+99:99",
    "a time that is none": "a: !!timestamp x",
    "a truth that is none": "a: !!bool x",
    "a list as key": "? [a]\n: b",
    "an unknown tag": "a: !!python/object/apply:os.getcwd []",
    "laughs": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
    "bytes": "a: !!binary x",
}
