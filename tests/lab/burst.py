"""ADDs of many pods at once, and an agent that is killed amid them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence

from tests.lab.lab import LabNode
from tests.lab.runner import Conf, RunnerError
from tests.support import eventually


def killed_amid_adds(node: LabNode, conf: Conf, names: Sequence[str], workers: int, after: int) -> None:
    """Add pods to these namespaces, kill -9 the agent once `after` are there, start another: no ADD fails."""
    done: list[str] = []
    failed: list[str] = []
    work, lock = iter(names), threading.Lock()

    def adds() -> None:
        while True:
            with lock:
                name = next(work, None)
            if name is None:
                return
            try:
                node.runner.add(conf, name, f"/run/netns/{name}")
                done.append(name)
            except RunnerError as error:
                failed.append(str(error))

    adding = [threading.Thread(target=adds) for _ in range(workers)]
    for thread in adding:
        thread.start()
    eventually(lambda: len(done) > after)
    node.stop_agent(signal.SIGKILL)
    node.start_agent()
    for thread in adding:
        thread.join()
    node.wait_ready()
    assert failed == [], "an ADD outlives the agent"
    assert len(done) == len(names)
    addresses = {a.result["ips"][0]["address"] for a in node.runner.cache.all(conf.name)}
    assert len(addresses) == len(names), "no address twice"
