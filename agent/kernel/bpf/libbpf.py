"""The library libbpf 1.x, as far as it is needed to load the programs of an object file into the kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agent.kernel.bpf import syscall
from agent.kernel.bpf.syscall import BpfError

LOG_LINES = 12  # the last lines of the verifier, which have the reason

_libc = ctypes.CDLL(None, use_errno=True)
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class Libbpf:
    """The library with its log. A process uses one at a time, as libbpf has one log for all of it."""

    def __init__(self) -> None:
        """Raises BpfError ENOENT where the library is not installed."""
        self._library = _library()
        self._lines: list[str] = []
        self._listener = _PRINT(self._hear)  # kept here, as libbpf has only its address

    def __enter__(self) -> Self:
        self._library.libbpf_set_print(self._listener)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._library.libbpf_set_print(_PRINT())  # NULL: it logs nothing

    @contextmanager
    def loaded(self, path: Path, pins: Path) -> Iterator[int]:
        """Load an object file with the maps pinned under `pins`, and yield libbpf's handle. Raises BpfError."""
        room = ctypes.create_string_buffer(os.fsencode(pins))
        # the first members of struct bpf_object_open_opts: size, name, relaxed_maps, pin_root_path
        options = struct.pack("=QQQQ", 32, 0, 0, ctypes.addressof(room))
        self._lines.clear()
        handle = self._library.bpf_object__open_file(os.fsencode(path), options)
        if not handle:
            raise self._refused(f"open {path}")
        try:
            if self._library.bpf_object__load(handle):
                raise self._refused(f"load {path}")
            yield handle
        finally:
            self._library.bpf_object__close(handle)

    def program(self, handle: int, name: str, path: Path) -> int:
        """Return the descriptor of a program of the loaded object of a file. Raises BpfError ENOENT."""
        found = self._library.bpf_object__find_program_by_name(handle, name.encode())
        if not found:
            raise BpfError(errno.ENOENT, f"{path} has no program {name}", "build the objects: make ebpf")
        return int(self._library.bpf_program__fd(found))

    def _refused(self, what: str) -> BpfError:
        """Return an error with the last lines of libbpf's log, which ends with the verifier's."""
        number = ctypes.get_errno() or errno.EINVAL
        lines = [line for text in self._lines for line in text.splitlines() if line.strip()]
        words = "\n".join(lines[-LOG_LINES:])
        remedy = "" if number in syscall.REMEDIES else "report it with `uname -r`"
        return BpfError(number, f"{what}: {os.strerror(number)}\n{words}".rstrip(), remedy)

    def _hear(self, _level: int, form: bytes, arguments: int) -> int:
        room = ctypes.create_string_buffer(1 << 16)
        _libc.vsnprintf(room, len(room), form, ctypes.c_void_p(arguments))
        self._lines.append(room.value.decode(errors="replace"))
        return 0


def _library() -> ctypes.CDLL:
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
    library.libbpf_set_print.argtypes = (_PRINT,)
    library.libbpf_set_print.restype = None
    return library
