#!/usr/bin/env python3
"""A meta plugin as Multus is one: it has no network of its own, but calls the plugin of each of its `delegates`.

Each is called as a runtime would: with an interface name and a netconf of its own, DEL in reverse order.
The first one's result is the pod's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Exit code and stdout are those of the first delegate that fails, else 0 and the first one's result."""
    verb, conf = os.environ["CNI_COMMAND"], json.load(sys.stdin)
    if verb == "VERSION":
        print(json.dumps({"cniVersion": conf["cniVersion"], "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}))
        return 0
    answers = []
    numbered = list(enumerate(conf["delegates"]))
    for number, delegate in reversed(numbered) if verb == "DEL" else numbered:
        done = call(number, dict(delegate), conf, verb)
        if done.returncode:
            print(done.stdout)
            return done.returncode
        answers.append(done.stdout)
    print(answers[0], end="")
    return 0


def call(
    number: int, delegate: dict[str, Any], conf: dict[str, Any], verb: str
) -> subprocess.CompletedProcess[str]:
    """One delegate's plugin; at CHECK and DEL it has what it answered at ADD, which is kept beside."""
    ifname = delegate.pop("ifname", os.environ.get("CNI_IFNAME", "") if number == 0 else f"net{number}")
    kept = Path(conf["keep"]) / f"{os.environ.get('CNI_CONTAINERID', '')}-{number}"
    doc = {"cniVersion": conf["cniVersion"], **delegate}
    if verb in ("CHECK", "DEL") and kept.exists():
        doc["prevResult"] = json.loads(kept.read_text())
    if "cni.dev/valid-attachments" in conf:
        doc["cni.dev/valid-attachments"] = conf["cni.dev/valid-attachments"]
    plugin = next(p for p in (Path(d) / doc["type"] for d in os.environ["CNI_PATH"].split(":")) if p.exists())
    environment = {**os.environ, "CNI_IFNAME": ifname}
    done = subprocess.run(
        [plugin], env=environment, input=json.dumps(doc), stdout=subprocess.PIPE, text=True, check=False
    )
    if verb == "ADD" and not done.returncode:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(done.stdout)
    if verb == "DEL" and not done.returncode:
        kept.unlink(missing_ok=True)
    return done


if __name__ == "__main__":
    sys.exit(main())
