"""Small files in the run-dir by which an agent passes its state to the next one."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from agent.runtime import atomic_file

log = logging.getLogger(__name__)


def write(path: Path, doc: object) -> bool:
    """Replace a file atomically by this JSON; return False, and log it, if that fails."""
    try:
        atomic_file.beside(path, json.dumps(doc)).rename(path)
    except OSError as error:
        log.warning("%s can't be written: %s", path, error)
        return False
    return True
