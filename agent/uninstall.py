"""testcni-uninstall: remove everything that the agent made on this node and wrote about it into the datastore.

Pods that still run lose their network.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from agent import config
from agent.cli import EXIT_BUSY, EXIT_FAILED, EXIT_USAGE
from agent.cluster import datastores
from agent.cluster.store import NotFoundError, StoreError
from agent.config import AgentConfig, ConfigError
from agent.host import installer
from agent.host.installer import Places
from agent.host.run_dir import Lock
from agent.kernel import ip_links, netlink
from agent.kernel.bpf.loader import Loader
from agent.model.marks import ALIAS, BPF_PINS, LINK_PREFIX
from agent.modes.registry import BUILT_IN, Modes
from agent.node import kernel_state, route_protocol
from agent.node.apply import NodeProgrammer
from agent.objects.base import Context
from agent.objects.host_kernel import HostKernel
from agent.objects.route_ownership import RouteOwnership
from agent.objects.state import NodeState

EXIT_DATASTORE = 4


def withdraw(conf: AgentConfig) -> Iterator[str]:
    """Remove from the datastore what the agent wrote about this node; yield each thing. Raises StoreError.

    If the Node object does not exist, there is nothing to remove.
    """
    found = datastores.open_all(conf.datastore)
    store, api = found.store, found.api
    try:
        store.publish_accepted_modes(conf.node, "")
        yield f"the accepted modes of node {conf.node}"
        if not api:
            return
        from agent.cluster import node_condition  # noqa: PLC0415 - the API's client is loaded where it is used

        if node_condition.remove(api, conf.node):
            yield f"the condition {node_condition.TYPE} of node {conf.node}"
    except NotFoundError:
        return


def uninstall(conf: AgentConfig, modes: Modes) -> Iterator[str]:
    """Remove conflist, plugins, links, daemons, routes, tunnels, nft table, pins and state; yield each thing.

    Raises OSError.
    """
    if conf.conflist:  # first, so that the runtime starts no more pods
        for path in installer.uninstall(Places(conf.bundle, conf.conflist, conf.bin_dir, conf.conf_dir)):
            yield str(path)
    nl, host = netlink.host(), HostKernel(Loader(conf.ebpf, BPF_PINS), conf.sysctl_dir)
    for link in ip_links.links(nl):
        if link.name.startswith(LINK_PREFIX) and link.alias.startswith(ALIAS):
            host.reaper.delete(nl, link.name)
            yield f"link {link.name} ({link.alias})"
    for mode in modes:
        yield from mode.uninstall(conf.run_dir)
    for protocol in route_protocol.in_use(conf.run_dir, conf.route_protocol):
        programmer = NodeProgrammer(modes.node_objects())
        kernel = kernel_state.read(nl, programmer.is_made)
        ctx = Context(nl, kernel, host, programmer.is_made, RouteOwnership(protocol))
        done = programmer.program(ctx, NodeState())
        if done.problems:
            raise OSError("; ".join(map(str, done.problems)))
    yield "bridges, tunnels, eBPF programs, routes and the nft table"
    if host.bpf.forget():
        yield str(host.bpf.pins)
    for folder in (conf.run_dir, conf.state_dir):
        yield from _empty(folder)


def _empty(folder: Path) -> Iterator[str]:
    """Remove the content of a folder, and yield it; in a container the folder itself is a mount."""
    if not folder.exists():
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        yield str(path)


def main(argv: list[str] | None = None) -> int:
    """Return the exit code; the options are those of the agent.

    0 all is removed, 1 failed, 2 wrong options, 3 an agent runs, 4 the node is clean, but the datastore could not
    be written.
    """
    try:
        conf = config.load(sys.argv[1:] if argv is None else argv, os.environ, BUILT_IN.agent_options)
        Lock(conf.run_dir)
        for what in uninstall(conf, BUILT_IN):
            print(f"removed {what}")  # noqa: T201
    except ConfigError as error:
        print(f"testcni-uninstall: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    except BlockingIOError:
        print(f"testcni-uninstall: an agent serves on {conf.run_dir}; stop it first", file=sys.stderr)  # noqa: T201
        return EXIT_BUSY
    except OSError as error:
        print(f"testcni-uninstall: {error}; you can run it again", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    try:
        for what in withdraw(conf):
            print(f"removed {what}")  # noqa: T201
    except StoreError as error:
        what = f"this node is clean, but the datastore still has its accepted modes and condition: {error}"
        print(f"testcni-uninstall: {what}; you can run it again", file=sys.stderr)  # noqa: T201
        return EXIT_DATASTORE
    return 0


if __name__ == "__main__":
    sys.exit(main())
