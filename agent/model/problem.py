"""Define a problem that a person must fix."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem that a person must fix: where it is, what is wrong, how to fix it."""

    where: str
    what: str
    remedy: str

    def __post_init__(self) -> None:
        """Escape bytes that are not UTF-8: names of files may have such, and many outputs refuse them."""
        for name in ("where", "what", "remedy"):
            text = getattr(self, name)
            if not text.isascii():
                object.__setattr__(self, name, text.encode(errors="backslashreplace").decode())

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"
