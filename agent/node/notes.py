"""Small files in the run-dir by which the next agent knows what this one did."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


def write(path: Path, doc: object) -> bool:
    """Replace a file by this JSON, whole at every moment; False, and said in the log, when that can't be done."""
    new = path.with_suffix(".new")
    try:
        new.write_text(json.dumps(doc))
        os.chmod(new, 0o600)  # noqa: PTH101
        new.rename(path)
    except OSError as error:
        log.warning("%s can't be written: %s", path, error)
        return False
    return True
