"""Text for a terminal or a log: the words of others, such as names of files, must not control it or hide text."""

from __future__ import annotations

import re
from typing import Any

UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
"""Characters without a shape, and those that change the direction of text (Unicode: Cc, Cf, Zl, Zp)."""


def escaped(text: str) -> str:
    r"""Return a text with such characters as `\u001b`, which is JSON's form, too."""
    return UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def escaped_values(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a JSON value with all its texts escaped."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, list):
        return [escaped_values(item) for item in value]
    if isinstance(value, dict):
        return {escaped(key): escaped_values(item) for key, item in value.items()}
    return value
