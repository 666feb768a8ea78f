"""Define a problem that a person must fix."""

from __future__ import annotations

from dataclasses import dataclass

from agent.runtime.printable import escaped, python_code


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem that a person must fix: where it is, what is wrong, how to fix it."""

    where: str
    what: str
    remedy: str

    def __post_init__(self) -> None:
        """Escape what many outputs refuse or obey: names of files may have control characters, and need no UTF-8.

        Words of other programs keep their lines.
        """
        for name, kept in (("where", ""), ("what", "\n\t"), ("remedy", "\n\t")):
            object.__setattr__(self, name, escaped(getattr(self, name), kept, python_code))

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"
