"""Programs and maps of the eBPF objects: loaded once by libbpf, kept by pins, adopted from them after a restart.

Under the folder of pins, LAYOUT/NAME are the maps and LAYOUT/PREFIX-DIGEST/NAME the programs of a family, where
the digest is that of the object files: the same files are adopted, other ones are loaded beside them with the same
maps. What is attached to devices stays until it is replaced, so neither a restart nor an upgrade loses a packet.
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

LAYOUT = "v1"  # of the maps: another one when a key, a value or a size in ebpf/maps.h changes
BPFFS = Path("/sys/fs/bpf")
FOLDER = BPFFS / "testcni"
BPF_FS_MAGIC = 0xCAFE4A11
LOG_LINES = 12  # of the verifier: the last ones say why

_libc = ctypes.CDLL(None, use_errno=True)
_said = threading.local()
PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class Family:
    """Programs that share maps, and are loaded and replaced together."""

    prefix: str
    programs: tuple[str, ...]
    maps: tuple[str, ...]
    former: tuple[str, ...] = ()
    """Maps that only programs of earlier versions have."""


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
    """The programs in force by their names, and the maps that they share."""

    programs: Mapping[str, Program]
    maps: Mapping[str, Map]
    adopted: bool
    """Whether they were there already."""


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

    Raises BpfError: no libbpf, no bpffs, a file that is missing, or the verifier's words.
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
    """The programs of the object files as an earlier process pinned them, or None. Raises OSError."""
    home = _home(_files(objects, family), folder, family)
    if not all((home / name).exists() for name in family.programs):
        return None
    return _opened(home, family, adopted=True)


def _home(files: Mapping[str, Path], folder: Path, family: Family) -> Path:
    """Where the programs of these very files are pinned."""
    return folder / LAYOUT / f"{family.prefix}{_digest(files)}"


def _opened(home: Path, family: Family, *, adopted: bool) -> Loaded:
    _place.loaded[family] = Loaded(
        {name: syscall.program(syscall.pinned(home / name)) for name in family.programs},
        _maps(home.parent, family),
        adopted,
    )
    return _place.loaded[family]


def maps(folder: Path = FOLDER, family: Family = VXLAN) -> Mapping[str, Map] | None:
    """The maps alone, as an earlier process may have left them; None where there are none. Raises BpfError."""
    if family in _place.loaded:
        return _place.loaded[family].maps
    root = folder / LAYOUT
    if family not in _place.left and all((root / name).exists() for name in family.maps):
        _place.left[family] = _maps(root, family)
    return _place.left.get(family)


def retire(objects: Path | None = None, folder: Path = FOLDER, family: Family = VXLAN) -> list[Path]:
    """Remove the pins of all other object files and layouts, once their programs are replaced; what went."""
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
    """Remove the pins of a family that is attached nowhere any more; whether there were any. Raises OSError."""
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
    """Remove all pins, when nothing is attached any more; whether there were any. Raises OSError."""
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
            f"{where} is no BPF file system",
            f"mount one: mount -t bpf bpf {BPFFS}; in a pod: hostPath",
        )


def _load(files: Mapping[str, Path], root: Path, home: Path) -> None:
    """Pins of the maps are made by libbpf; those of the programs all or none, so that what is there is whole."""
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
    """An object file in the kernel, with the maps that are pinned under `root`, as libbpf's handle."""
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
    """libbpf's last words, which end with those of the verifier where it was that."""
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
