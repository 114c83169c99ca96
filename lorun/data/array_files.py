"""Reading the arrays in .mat, HDF5 and NumPy files, in a child process that a damaged file may crash."""

import atexit
import json
import math
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import IO, Any

import numpy as np

from lorun.data import array_worker

SUFFIXES = (".mat", ".h5", ".hdf5", ".npy", ".npz")
MAX_BYTES = array_worker.MAX_BYTES
SECONDS = 60.0
# Slower than any disk: a file is waited for SECONDS and the time that its bytes take at this speed.
BYTES_PER_SECOND = 10e6
MAX_HEADER = 2**24

_readers: "weakref.WeakSet[ArrayReader]" = weakref.WeakSet()


def read_arrays(path: str | Path, cells: bool = False) -> dict[str, np.ndarray]:
    """Every array of numbers in a file, by name, in native byte order and with its own shape and dtype.

    - `.mat`: MATLAB 5 to 7 and 7.3, axes as in MATLAB, in the dtype of the MATLAB class (a logical is bool).
      Structs, cells, text and sparse matrices are left out. With `cells`, a cell array of nothing but
      arrays, except in 7.3, gives each as it is stored, as "name{1}", "name{2}".
    - `.h5`, `.hdf5`: all data sets, nested ones as "group/name", axes as stored. Links are not followed.
    - `.npz`: by key; `.npy`: one array under the key "array". Nothing pickled is read.

    The file is read in a child process that is kept for the next call, within a time and, on Linux, a memory
    limit that grow with the file. A checksum is verified if the format carries one: .npz, compressed
    MATLAB 5 to 7, and HDF5 data sets written with one. In other files, damaged values can go unnoticed.

    Raises:
        ValueError: another suffix; a damaged file, also one that crashes the reader, makes it hang or ask for
            too much memory; arrays beyond `MAX_BYTES` (4 GiB) together.
        OSError: no such file, or no permission to read it.
        ImportError: h5py or scipy is not installed.
    """
    return _shared.read(path, cells)


class ArrayReader:
    """Owns the child process that :func:`read_arrays` reads in: started when needed, replaced when it dies.

    Safe to share between threads, which wait for each other; a forked process gets a child of its own. The
    child ends with `close`, with this object, or with this process however that ends.

    Args:
        seconds: how long to wait for one file, besides a second for every 10 MB.
    """

    def __init__(self, seconds: float = SECONDS):
        self.seconds = seconds
        self._process: subprocess.Popen | None = None
        self._lock = threading.Lock()
        _readers.add(self)

    def __enter__(self) -> "ArrayReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, path: str | Path, cells: bool = False) -> dict[str, np.ndarray]:
        """As :func:`read_arrays`."""
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise ValueError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        path.open("rb").close()  # raises, naming the path, if it may not be read
        seconds = self.seconds + path.stat().st_size / BYTES_PER_SECOND
        request = {"path": os.path.abspath(path), "suffix": suffix, "cells": cells}
        request["seconds"] = math.ceil(seconds) + 1
        with self._lock:
            head, arrays = self._exchange(path, request, seconds)
        if "missing" in head:
            raise ImportError(f"{path}: reading it needs the package {head['missing']}; install that")
        if "error" in head:
            raise ValueError(f"{path}: {head['error']}")
        return arrays

    def close(self) -> None:
        """End the child, if there is one; a later read starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            _close_pipes(process)

    def _exchange(self, path: Path, request: dict, seconds: float) -> tuple[dict, dict[str, np.ndarray]]:
        process = self._running()
        expired = threading.Event()

        def expire():
            expired.set()
            process.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        finished = False
        try:
            _pipe(process.stdin).write(json.dumps(request).encode() + b"\n")
            answer = _receive(_pipe(process.stdout))
            finished = True
            return answer
        except (EOFError, OSError):
            reason = _death(process)
        except (ValueError, TypeError, KeyError):
            reason = "the reader's answer makes no sense"
        finally:
            timer.cancel()
            timer.join()
            # Whatever else it says would answer the wrong question.
            if not finished or expired.is_set():
                self.close()
        if expired.is_set():
            reason = f"the reader did not finish within {seconds:.0f} s"
        raise ValueError(f"{path}: damaged or not a {request['suffix']} file ({reason}); write it again")

    def _running(self) -> subprocess.Popen:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            self._process = _start()
        return self._process

    def _forget(self) -> None:
        """Leave the child to the process that this one was forked from."""
        process, self._process = self._process, None
        self._lock = threading.Lock()
        if process is not None:
            process.returncode = 0  # not this process's to wait for
            _close_pipes(process)


def _start() -> subprocess.Popen:
    one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    # A lock makes read-only and network folders unreadable.
    environment = os.environ | one_thread | {"HDF5_USE_FILE_LOCKING": "FALSE"}
    # -P: lorun/data is no place to import from. Unbuffered, so that a fork copies nothing half-written.
    command = [sys.executable, "-P", array_worker.__file__]
    process = subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        _receive(_pipe(process.stdout))
    except (EOFError, ValueError) as error:
        process.kill()
        _close_pipes(process)
        raise RuntimeError(
            f"the process that reads array files does not start ({' '.join(command)}: "
            f"exit code {process.wait()}); run that command to see why"
        ) from error
    return process


def _close_pipes(process: subprocess.Popen) -> None:
    _pipe(process.stdin).close()
    _pipe(process.stdout).close()


def _pipe(pipe: IO[bytes] | None) -> Any:
    """A pipe of a process that was started with one; unbuffered, so that it has readinto."""
    assert pipe is not None
    return pipe


def _receive(stream: Any) -> tuple[dict, dict[str, np.ndarray]]:
    """One answer of the worker; its text is checked, because a damaged file may have damaged the worker."""
    (length,) = array_worker.LENGTH.unpack(_take(stream, array_worker.LENGTH.size).data)
    if length > MAX_HEADER:
        raise ValueError("header too long")
    head = json.loads(_take(stream, length).tobytes())
    if not isinstance(head, dict):
        raise ValueError("no header")
    room, arrays = MAX_BYTES, {}
    for name, dtype, shape, order in head.get("arrays", ()):
        dtype = np.dtype(dtype)
        count = math.prod(shape) * dtype.itemsize
        if not array_worker.is_numeric(dtype) or min(shape, default=0) < 0 or count > room:
            raise ValueError("no such array")
        room -= count
        arrays[name] = _take(stream, count).view(dtype).reshape(shape, order=order)
    return head, arrays


def _take(stream: Any, count: int) -> np.ndarray:
    taken = np.empty(count, np.uint8)
    rest = memoryview(taken.data)
    while rest:
        got = stream.readinto(rest)
        if not got:
            raise EOFError
        rest = rest[got:]
    return taken


def _death(process: subprocess.Popen) -> str:
    try:
        code = process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        return "the reader stopped answering"
    if code < 0:
        return f"the reader died with signal {-code}"
    return f"the reader died with exit code {code}"


def _forget_all() -> None:
    for reader in list(_readers):
        reader._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
_shared = ArrayReader()
atexit.register(_shared.close)
