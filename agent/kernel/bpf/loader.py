"""Load programs and maps of eBPF objects with libbpf, pin them, and adopt them by their pins after a restart.

In the directory of pins, LAYOUT/NAME are the maps and LAYOUT/PREFIX-DIGEST/NAME the programs of a family. The
digest is that of the object files: programs of the same files are adopted, those of other files are loaded beside
them with the same maps. Attached programs stay until they are replaced, so a restart or upgrade loses no packet.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.kernel.bpf import syscall
from agent.kernel.bpf.syscall import BpfError, Map, Program

LAYOUT = "v1"  # of the maps: increase it when a key, a value or a size in ebpf/maps.h changes
BPFFS = Path("/sys/fs/bpf")
FOLDER = BPFFS / "testcni"
BPF_FS_MAGIC = 0xCAFE4A11
LOG_LINES = 12  # the last lines of the verifier, which have the reason

_libc = ctypes.CDLL(None, use_errno=True)
_said = threading.local()
PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class Family:
    """Programs with common maps, which are loaded and replaced together."""

    prefix: str
    programs: tuple[str, ...]
    maps: tuple[str, ...]
    former: tuple[str, ...] = ()
    """Maps of programs of earlier versions only."""


VXLAN = Family(
    "programs-",
    ("veth_ingress", "veth_egress", "vxlan_ingress", "vxlan_egress"),
    ("config", "blocks", "nodes", "pods", "flows", "reason_counters", "events"),
    ("counters",),
)
IPIP = Family(
    "ipip-", ("ipip_ingress", "ipip_egress"), ("ipip_node", "ipip_blocks", "ipip_nodes", "ipip_counters")
)
GUARD = Family("guard-", ("pod_guard",), ("guard_config", "guard_ports", "guard_addresses", "guard_counters"))
FAMILIES = (VXLAN, IPIP, GUARD)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Loaded programs by name, and their common maps."""

    programs: Mapping[str, Program]
    maps: Mapping[str, Map]
    adopted: bool
    """Whether they were adopted by their pins."""


@dataclass
class _Place:
    """Where this process has its objects from, and what it has loaded."""

    objects: Path = Path("/opt/testcni/ebpf")
    loaded: dict[Family, Loaded] = field(default_factory=dict)
    left: dict[Family, Mapping[str, Map]] = field(default_factory=dict)
    """The maps of an earlier process, before anything is loaded."""


_place = _Place()


def use(objects: Path) -> None:
    """Say where the object files are, before the first `load`."""
    _place.objects = objects


def current(family: Family = VXLAN) -> Loaded | None:
    """What `load` found last, None before it did."""
    return _place.loaded.get(family)


def load(objects: Path | None = None, folder: Path = FOLDER, family: Family = VXLAN) -> Loaded:
    """Adopt the pinned programs of the object files, or load and pin them.

    Raises BpfError: libbpf or bpffs is missing, a file is missing, or the verifier refuses.
    """
    _check_bpffs(folder)
    if known := adopt(objects, folder, family):
        return known
    files = _files(objects, family)
    home = _home(files, folder, family)
    shutil.rmtree(home, ignore_errors=True)
    _load(files, folder / LAYOUT, home)
    return _opened(home, family, adopted=False)


def adopt(objects: Path | None = None, folder: Path = FOLDER, family: Family = VXLAN) -> Loaded | None:
    """Return the programs of the object files if an earlier process pinned them, else None. Raises OSError."""
    home = _home(_files(objects, family), folder, family)
    if not all((home / name).exists() for name in family.programs):
        return None
    return _opened(home, family, adopted=True)


def _home(files: Mapping[str, Path], folder: Path, family: Family) -> Path:
    """Return the directory of the pins of the programs of these files."""
    return folder / LAYOUT / f"{family.prefix}{_digest(files)}"


def _opened(home: Path, family: Family, *, adopted: bool) -> Loaded:
    _place.loaded[family] = Loaded(
        {name: syscall.program(syscall.pinned(home / name)) for name in family.programs},
        _maps(home.parent, family),
        adopted,
    )
    return _place.loaded[family]


def maps(folder: Path = FOLDER, family: Family = VXLAN) -> Mapping[str, Map] | None:
    """Return the maps, also without programs, as an earlier process left them, or None. Raises BpfError."""
    if family in _place.loaded:
        return _place.loaded[family].maps
    root = folder / LAYOUT
    if family not in _place.left and all((root / name).exists() for name in family.maps):
        _place.left[family] = _maps(root, family)
    return _place.left.get(family)


def retire(objects: Path | None = None, folder: Path = FOLDER, family: Family = VXLAN) -> list[Path]:
    """Remove the pins of other object files and layouts, when their programs are replaced; return their names."""
    current = f"{family.prefix}{_digest(_files(objects, family))}"
    old = [path for path in folder.iterdir() if path.name != LAYOUT]
    old += [path for path in (folder / LAYOUT).glob(f"{family.prefix}*") if path.name != current]
    for path in old:
        shutil.rmtree(path)
    former = [path for path in _former(folder / LAYOUT, family) if path.exists()]
    for path in former:
        path.unlink()
    return old + former


def drop(folder: Path = FOLDER, family: Family = VXLAN) -> bool:
    """Remove the pins of a family, when it is not attached; return whether there were any. Raises OSError."""
    known = _place.loaded.pop(family, None)
    _place.left.pop(family, None)
    root = folder / LAYOUT
    pins = [*root.glob(f"{family.prefix}*"), *root.glob(f"new-{family.prefix}*")] if root.exists() else []
    pins += [path for path in (*map(root.joinpath, family.maps), *_former(root, family)) if path.exists()]
    for path in pins:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return bool(known or pins)


def forget(folder: Path = FOLDER) -> bool:
    """Remove all pins, when no program is attached; return whether there were any. Raises OSError."""
    _place.loaded.clear()
    _place.left.clear()
    if not folder.exists():
        return False
    shutil.rmtree(folder)
    return True


def _former(root: Path, family: Family) -> list[Path]:
    return [root / name for name in family.former]


def _files(objects: Path | None, family: Family) -> dict[str, Path]:
    return {name: (objects or _place.objects) / f"{name}.o" for name in family.programs}


def _maps(root: Path, family: Family) -> dict[str, Map]:
    return {name: syscall.map_of(syscall.pinned(root / name)) for name in family.maps}


def _digest(files: Mapping[str, Path]) -> str:
    total = hashlib.sha256()
    for name, path in sorted(files.items()):
        try:
            total.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            number = error.errno or errno.EIO
            raise BpfError(number, f"eBPF object {name}: {error}", "build the objects: make ebpf") from error
    return total.hexdigest()[:16]


def _check_bpffs(folder: Path) -> None:
    where = folder
    while not where.exists():
        where = where.parent
    status = ctypes.create_string_buffer(512)  # struct statfs: f_type comes first
    if _libc.statfs(os.fsencode(where), status) or struct.unpack_from("@L", status)[0] != BPF_FS_MAGIC:
        raise BpfError(
            errno.ENODEV,
            f"{where} is not a BPF file system",
            f"mount one: mount -t bpf bpf {BPFFS}; in a pod: hostPath",
        )


def _load(files: Mapping[str, Path], root: Path, home: Path) -> None:
    """Load object files and pin all their programs or none; libbpf pins the maps. Raises BpfError, OSError."""
    library = _libbpf()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = root / f"new-{home.name}"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    for name, path in files.items():
        with _object(library, path, root) as loaded:
            found = library.bpf_object__find_program_by_name(loaded, name.encode())
            if not found:
                raise BpfError(errno.ENOENT, f"{path} has no program {name}", "build the objects: make ebpf")
            syscall.pin(library.bpf_program__fd(found), new / name)
    new.rename(home)


@contextmanager
def _object(library: ctypes.CDLL, path: Path, root: Path) -> Iterator[int]:
    """Load an object file with the maps pinned under `root`, and yield libbpf's handle. Raises BpfError."""
    pins = os.fsencode(root)
    room = ctypes.create_string_buffer(pins)
    # the first members of struct bpf_object_open_opts: size, name, relaxed_maps, pin_root_path
    options = struct.pack("=QQQQ", 32, 0, 0, ctypes.addressof(room))
    _said.lines = []
    handle = library.bpf_object__open_file(os.fsencode(path), options)
    if not handle:
        raise _refused(f"open {path}")
    try:
        if library.bpf_object__load(handle):
            raise _refused(f"load {path}")
        yield handle
    finally:
        library.bpf_object__close(handle)


def _refused(what: str) -> BpfError:
    """Return an error with the last lines of libbpf's log, which ends with the verifier's."""
    number = ctypes.get_errno() or errno.EINVAL
    lines = [line for text in _said.lines for line in text.splitlines() if line.strip()]
    words = "\n".join(lines[-LOG_LINES:])
    remedy = "" if number in syscall.REMEDIES else "report it with `uname -r`"
    return BpfError(number, f"{what}: {os.strerror(number)}\n{words}".rstrip(), remedy)


def _hear(_level: int, form: bytes, arguments: int) -> int:
    room = ctypes.create_string_buffer(1 << 16)
    _libc.vsnprintf(room, len(room), form, ctypes.c_void_p(arguments))
    if not hasattr(_said, "lines"):
        _said.lines = []
    _said.lines.append(room.value.decode(errors="replace"))
    return 0


_listener = PRINT(_hear)  # libbpf keeps the pointer


def _libbpf() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise BpfError(
            errno.ENOENT, f"no libbpf 1.x: {error}", "install it: Debian's package is libbpf1"
        ) from error
    handle: Any = ctypes.c_void_p
    library.bpf_object__open_file.restype = handle
    library.bpf_object__open_file.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
    library.bpf_object__load.argtypes = (handle,)
    library.bpf_object__close.argtypes = (handle,)
    library.bpf_object__find_program_by_name.restype = handle
    library.bpf_object__find_program_by_name.argtypes = (handle, ctypes.c_char_p)
    library.bpf_program__fd.argtypes = (handle,)
    library.libbpf_set_print.argtypes = (PRINT,)
    library.libbpf_set_print.restype = None
    library.libbpf_set_print(_listener)
    return library
