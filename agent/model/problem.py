"""A problem that a person must fix."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """Something a person must mend: where it is, what is wrong and how to mend it."""

    where: str
    what: str
    remedy: str

    def __post_init__(self) -> None:
        """Write out what can't be shown: a file's name need not be UTF-8, and this goes to people by many ways."""
        for name in ("where", "what", "remedy"):
            text = getattr(self, name)
            if not text.isascii():
                object.__setattr__(self, name, text.encode(errors="backslashreplace").decode())

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"
