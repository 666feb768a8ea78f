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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.kernel.bpf import syscall
from agent.kernel.bpf.libbpf import Libbpf
from agent.kernel.bpf.syscall import BpfError, Map, Program

LAYOUT = "v1"  # of the maps: increase it when a key, a value or a size in ebpf/maps.h changes
BPFFS = Path("/sys/fs/bpf")
BPF_FS_MAGIC = 0xCAFE4A11

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Family:
    """Programs with common maps, which are loaded and replaced together."""

    prefix: str
    programs: tuple[str, ...]
    maps: tuple[str, ...]
    former: tuple[str, ...] = ()
    """Maps of programs of earlier versions only."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Loaded programs by name, and their common maps."""

    programs: Mapping[str, Program]
    maps: Mapping[str, Map]
    adopted: bool
    """Whether they were adopted by their pins."""


class Loader:
    """The programs of a directory of object files with their pins, and what of it is loaded. For several threads.

    A process has one for each directory of pins; what it opened stays open as long as the process.
    """

    def __init__(self, objects: Path, pins: Path) -> None:
        """`objects` has the object files, NAME.o; `pins` is the directory of the pins, on a BPF file system."""
        self._objects = objects
        self._pins = pins
        self._loading = threading.Lock()
        self._loaded: dict[Family, Loaded] = {}
        self._left: dict[Family, Mapping[str, Map]] = {}
        """The maps of an earlier process, before anything is loaded."""

    @property
    def pins(self) -> Path:
        """The directory of the pins."""
        return self._pins

    def current(self, family: Family) -> Loaded | None:
        """Return what `load` or `adopt` found last, None before they did."""
        return self._loaded.get(family)

    def ensure(self, family: Family) -> Loaded:
        """Return what is loaded; the first caller loads it while others wait. Raises what `load` raises."""
        if known := self.current(family):
            return known
        with self._loading:
            return self.current(family) or self._load(family)

    def load(self, family: Family) -> Loaded:
        """Adopt the pinned programs of the object files, or load and pin them.

        Raises BpfError: libbpf or bpffs is missing, a file is missing, or the verifier refuses.
        """
        with self._loading:
            return self._load(family)

    def adopt(self, family: Family) -> Loaded | None:
        """Return the programs of the object files if an earlier process pinned them, else None. Raises OSError.

        Each descriptor is opened once, though many threads ask when an agent starts: none of them is closed.
        """
        if known := self.current(family):
            return known
        with self._loading:
            return self.current(family) or self._adopt(family)

    def maps(self, family: Family) -> Mapping[str, Map] | None:
        """Return the maps, also without programs, as an earlier process left them, or None. Raises BpfError."""
        if loaded := self._loaded.get(family):
            return loaded.maps
        with self._loading:
            if loaded := self._loaded.get(family):
                return loaded.maps
            if family not in self._left and (left := pinned_maps(self._pins, family)):
                self._left[family] = left
            return self._left.get(family)

    def retire(self, family: Family) -> list[Path]:
        """Remove pins of other object files and layouts, when their programs are replaced; return their names."""
        current = self._home(family).name
        old = [path for path in self._pins.iterdir() if path.name != LAYOUT]
        old += [path for path in (self._pins / LAYOUT).glob(f"{family.prefix}*") if path.name != current]
        for path in old:
            shutil.rmtree(path)
        former = [path for path in _former(self._pins / LAYOUT, family) if path.exists()]
        for path in former:
            path.unlink()
        return old + former

    def drop(self, family: Family) -> bool:
        """Remove the pins of a family, when it is not attached; return whether there were any. Raises OSError."""
        known = self._loaded.pop(family, None)
        self._left.pop(family, None)
        root = self._pins / LAYOUT
        pins = [*root.glob(f"{family.prefix}*"), *root.glob(f"new-{family.prefix}*")] if root.exists() else []
        pins += [path for path in (*map(root.joinpath, family.maps), *_former(root, family)) if path.exists()]
        for path in pins:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        return bool(known or pins)

    def forget(self) -> bool:
        """Remove all pins, when no program is attached; return whether there were any. Raises OSError."""
        self._loaded.clear()
        self._left.clear()
        if not self._pins.exists():
            return False
        shutil.rmtree(self._pins)
        return True

    def _load(self, family: Family) -> Loaded:
        _check_bpffs(self._pins)
        if known := self._adopt(family):
            return known
        home = self._home(family)
        shutil.rmtree(home, ignore_errors=True)
        _load(self._files(family), self._pins / LAYOUT, home)
        return self._opened(home, family, adopted=False)

    def _adopt(self, family: Family) -> Loaded | None:
        home = self._home(family)
        if not all((home / name).exists() for name in family.programs):
            return None
        return self._opened(home, family, adopted=True)

    def _files(self, family: Family) -> dict[str, Path]:
        return {name: self._objects / f"{name}.o" for name in family.programs}

    def _home(self, family: Family) -> Path:
        """Return the directory of the pins of the programs of the object files. Raises BpfError."""
        return self._pins / LAYOUT / f"{family.prefix}{_digest(self._files(family))}"

    def _opened(self, home: Path, family: Family, *, adopted: bool) -> Loaded:
        programs = {name: syscall.program(syscall.pinned(home / name)) for name in family.programs}
        left = self._left.pop(family, None)  # a load may have made new maps
        maps = left if left and adopted else _maps(home.parent, family)
        loaded = self._loaded[family] = Loaded(programs, maps, adopted)
        return loaded


def pinned_maps(pins: Path, family: Family) -> Mapping[str, Map] | None:
    """Return the maps that some process pinned; None if one of them is missing. Raises BpfError."""
    root = pins / LAYOUT
    return _maps(root, family) if all((root / name).exists() for name in family.maps) else None


def _former(root: Path, family: Family) -> list[Path]:
    return [root / name for name in family.former]


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
    with Libbpf() as library:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = root / f"new-{home.name}"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        for name, path in files.items():
            with library.loaded(path, root) as handle:
                syscall.pin(library.program(handle, name, path), new / name)
    new.rename(home)
