"""Small files in the run-dir by which the next agent knows what this one did."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from agent.runtime import atomic_file

log = logging.getLogger(__name__)


def write(path: Path, doc: object) -> bool:
    """Replace a file by this JSON, whole at every moment; False, and said in the log, when that can't be done."""
    try:
        atomic_file.beside(path, json.dumps(doc)).rename(path)
    except OSError as error:
        log.warning("%s can't be written: %s", path, error)
        return False
    return True
