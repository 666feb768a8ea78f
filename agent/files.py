"""Files that are replaced: whole at every moment, and nobody else's to read."""

from __future__ import annotations

import os
from pathlib import Path


def beside(path: Path, text: str) -> Path:
    """A file of mode 0600 with the text, to be renamed over `path`. Raises OSError."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)
    return new
