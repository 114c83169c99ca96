"""The child process of array_files: it parses the files, so that a crash of a parser ends only this process.

It is run by its path, because `import lorun` brings torch along. A request is one line of JSON on stdin,
`{"path", "suffix", "seconds"}`. An answer is the length of a JSON text (8 bytes), the text and, where that
is `{"arrays": [[name, dtype, shape, order], ...]}`, their bytes; otherwise the text is `{"error"}` or
`{"missing"}`, the name of a package. The first answer, `{}`, says that the process is up.
"""

import importlib
import io
import json
import math
import os
import signal
import struct
import sys
import zipfile
import zlib
from contextlib import contextmanager

try:
    import resource
except ImportError:  # Windows: no limit, the rest is the same
    resource = None  # type: ignore[assignment]

MAX_BYTES = 4 * 2**30
LENGTH = struct.Struct("<Q")
# zlib's technical notes: deflate makes nothing smaller than this; MATLAB also stores whole doubles as bytes.
DEFLATE_RATIO = 1032
NARROWING = 8
# How many copies of one array a parser may hold at a time, and the room it needs for itself.
COPIES, SLACK = 3, 128 * 2**20
PIECE = 2**20

MAT5_HEADER, MAT5_MATRIX, MAT5_COMPRESSED = 128, 14, 15
WHOLE_NUMBERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
MATLAB_DTYPES = {"double": "float64", "single": "float32", "logical": "bool"} | {n: n for n in WHOLE_NUMBERS}


class Refused(Exception):
    """The file is intact but is not read; the message says why and what to do."""


def read_npy(path):
    with open(path, "rb") as file:
        array = parse_npy(file.read())
    if array is None:
        raise Refused("holds text or Python objects; save an array of numbers")
    return {"array": array}


def read_npz(path):
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) != listed_members(path, len(archive.comment)):
            raise ValueError("its list of contents is damaged")
        for member in members:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Refused("is compressed in a way that np.savez never uses; write it with np.savez")
            if member.file_size > DEFLATE_RATIO * (member.compress_size + PIECE):
                raise ValueError(f"{member.filename} declares more bytes than it can hold")
        check_total(sum(member.file_size for member in members))
        for member in members:
            # Whole, and whatever its name: the checksum and the second copy of the name are compared here.
            data = archive.read(member)
            array = parse_npy(data) if member.filename.endswith(".npy") else None
            if array is not None:
                arrays[member.filename.removesuffix(".npy")] = array
    return arrays


def listed_members(path, comment):
    """How many members a zip file says it has, in its last record; zipfile accepts fewer silently."""
    with open(path, "rb") as file:
        file.seek(-comment - 12, os.SEEK_END)
        return int.from_bytes(file.read(2), "little")


def parse_npy(data):
    """The array in the bytes of an .npy file, or None if it holds no numbers."""
    import numpy as np

    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version == (3, 0):  # only written for records with names beyond Latin-1
        return None
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = header[version](file)
    if not is_numeric(dtype):
        return None
    held, declared = len(data) - file.tell(), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or declared != held:
        raise ValueError(f"its header declares {declared} bytes of {dtype} {shape}, {held} follow")
    array = np.frombuffer(data, dtype, offset=file.tell())
    return array.reshape(shape, order="F" if fortran else "C")


def read_mat5(path):
    import numpy as np
    from scipy.io import matlab

    check_mat5_elements(path)
    found = {name: (shape, kind) for name, shape, kind in matlab.whosmat(path) if kind in MATLAB_DTYPES}
    check_total(sum(math.prod(s) * np.dtype(MATLAB_DTYPES[kind]).itemsize for s, kind in found.values()))
    # Not mat_dtype=True, which drops imaginary parts.
    variables = matlab.loadmat(path, variable_names=list(found)) if found else {}
    arrays = {}
    for name, (shape, kind) in found.items():
        array = variables[name]
        if isinstance(array, str):
            raise ValueError(f"{name}: {array}")
        if isinstance(array, np.ndarray):  # else a sparse matrix
            if array.shape != tuple(shape):
                raise ValueError(f"{name} declares {tuple(shape)} and holds {array.shape}")
            arrays[name] = array if array.dtype.kind == "c" else array.astype(MATLAB_DTYPES[kind], copy=False)
    return arrays


def read_mat5_with_cells(path):
    """As `read_mat5`, and the arrays in cells that hold nothing else, as MATLAB counts them: name{1}."""
    from scipy.io import matlab

    arrays = read_mat5(path)
    cells = [name for name, _, kind in matlab.whosmat(path) if kind == "cell"]
    variables = matlab.loadmat(path, variable_names=cells) if cells else {}
    for name in cells:
        arrays |= arrays_of_cell(name, variables[name])
    return arrays


def arrays_of_cell(name, cell):
    """The arrays in a cell array; none if it holds anything else."""
    import numpy as np

    parts = list(cell.ravel(order="F"))
    if not all(isinstance(part, np.ndarray) and is_numeric(part.dtype) for part in parts):
        return {}
    check_total(sum(part.nbytes for part in parts))
    return {f"{name}{{{number}}}": part for number, part in enumerate(parts, 1)}


def check_mat5_elements(path):
    """Raise unless the file consists of whole variables, and compressed ones match their checksum.

    scipy stops reading a compressed variable before its checksum.
    """
    total, end = 0, os.path.getsize(path)
    with open(path, "rb") as file:
        order = "<" if file.read(MAT5_HEADER)[126:128] == b"IM" else ">"
        while file.tell() < end:
            kind, length = struct.unpack(order + "II", file.read(8))
            if kind not in (MAT5_MATRIX, MAT5_COMPRESSED):
                raise ValueError(f"expected a variable at byte {file.tell() - 8}, got type {kind}")
            if file.tell() + length > end:
                raise ValueError(f"ends within the variable at byte {file.tell() - 8}")
            if kind == MAT5_COMPRESSED:
                total += inflated_size(file, length)
            else:
                total += length
                file.seek(length, os.SEEK_CUR)
            check_total(total)


def inflated_size(file, length):
    inflater, total = zlib.decompressobj(), 0
    while length:
        piece = file.read(min(length, PIECE))
        length -= len(piece)
        while piece:
            total += len(inflater.decompress(piece, 16 * PIECE))
            check_total(total)
            piece = inflater.unconsumed_tail
    total += len(inflater.flush())
    if not inflater.eof or inflater.unused_data:
        raise ValueError("a compressed variable is cut off")
    return total


def read_mat73(path):
    return read_hdf5(path, matlab=True)


def read_hdf5(path, matlab=False):
    import h5py

    arrays = {}

    def visit(name, item):
        if not isinstance(name, str):
            raise ValueError(f"the name {name!r} is not UTF-8")
        # Variables of a v7.3 file lie at its top; groups are structs, cells and sparse matrices.
        if isinstance(item, h5py.Dataset) and not (matlab and "/" in name):
            array = read_dataset(name, item, os.path.getsize(path), matlab)
            if array is not None:
                arrays[name] = array
                check_total(sum(array.nbytes for array in arrays.values()))

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return arrays


def read_dataset(name, item, size, matlab):
    """A data set as an array, or None if it holds no numbers."""
    import numpy as np

    kind = item.attrs.get("MATLAB_class", b"double") if matlab else b""
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    is_complex = matlab and item.dtype.names == ("real", "imag")
    if not (is_numeric(item.dtype) or is_complex) or (matlab and kind not in MATLAB_DTYPES):
        return None
    if item.shape is None:  # HDF5's null space
        return None
    if item.is_virtual or item.external:
        raise Refused(f"keeps the values of {name} in other files; copy them into one file")
    check_total(item.nbytes)
    if item.nbytes > DEFLATE_RATIO * (size + PIECE):
        raise ValueError(f"{name} declares {item.nbytes} bytes, more than {size} bytes can hold")
    array = item[()] if item.shape else np.asarray(item[()])
    if not matlab:
        return array
    if "MATLAB_empty" in item.attrs and item.attrs["MATLAB_empty"]:
        shape = tuple(int(side) for side in array.ravel())
        check_total(math.prod(shape))
        return np.zeros(shape, MATLAB_DTYPES[kind])
    if is_complex:
        array = array["real"] + 1j * array["imag"]
    # MATLAB counts its axes from the other end.
    return (array.astype(bool) if kind == "logical" else array).T


def is_numeric(dtype):
    return dtype.names is None and dtype.subdtype is None and dtype.kind in "biufc"


def check_total(count):
    if count > MAX_BYTES:
        raise Refused(
            f"holds {count / 2**30:.1f} GiB of arrays, above the limit of {MAX_BYTES / 2**30:.0f} GiB; "
            "write smaller files"
        )


def reader_for(path, suffix, cells=False):
    """The function that reads this file; imports what that needs, before memory is limited."""
    if suffix in (".npy", ".npz"):
        importlib.import_module("numpy.lib.format")
        return read_npy if suffix == ".npy" else read_npz
    if suffix != ".mat":
        importlib.import_module("h5py")
        return read_hdf5
    with open(path, "rb") as file:
        head = file.read(MAT5_HEADER)
    if head[124:128] in (b"\x00\x01IM", b"\x01\x00MI"):
        importlib.import_module("scipy.io.matlab")
        return read_mat5_with_cells if cells else read_mat5
    if head[124:128] in (b"\x00\x02IM", b"\x02\x00MI"):
        importlib.import_module("h5py")
        return read_mat73
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        raise Refused("is HDF5 without MATLAB's header; if its axes are in Python's order, rename it to .h5")
    raise ValueError("it has no header of MATLAB 5 to 7.3")


@contextmanager
def limited_memory(size):
    """Let this process allocate what a file of `size` bytes can need, and no more."""
    pages = address_space()
    if pages is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    limits = [pages + SLACK + COPIES * min(MAX_BYTES, NARROWING * DEFLATE_RATIO * size), *before]
    lowest = min(limit for limit in limits if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def address_space():
    """The bytes of address space in use, or None if the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, AttributeError):
        return None


def answer(path, suffix, cells=False):
    """The text of the answer and the flat arrays to send after it."""
    try:
        read = reader_for(path, suffix, cells)
        with limited_memory(os.path.getsize(path)):
            packed = [pack(name, array) for name, array in read(path).items()]
            check_total(sum(flat.nbytes for _, flat in packed))
        return {"arrays": [entry for entry, _ in packed]}, [flat for _, flat in packed]
    except Refused as error:
        return {"error": str(error)}, []
    except ImportError as error:
        return {"missing": error.name or str(error)}, []
    except MemoryError:
        reason = "it asks for more memory than its size explains"
        return {"error": f"damaged or not a {suffix} file ({reason}); write it again"}, []
    except Exception as error:  # numpy, zipfile, scipy and h5py raise two dozen kinds for damaged files
        # Spaces, not line breaks, and no page of HDF5's innards.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return {"error": f"damaged or not a {suffix} file ({reason}); write it again"}, []


def pack(name, array):
    """[name, dtype, shape, order] and the values in that order, one-dimensional, in native byte order."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    order = "C" if array.flags.c_contiguous or not array.flags.f_contiguous else "F"
    return [name, array.dtype.str, list(array.shape), order], array.reshape(-1, order=order)


def send(stream, text, arrays):
    encoded = json.dumps(text).encode()
    stream.write(LENGTH.pack(len(encoded)) + encoded)
    for array in arrays:
        stream.write(array.view("uint8").data)
    stream.flush()


def main():
    # Ctrl-C is for the parent, which ends this process if it no longer wants the answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that what a library prints is no answer
    if resource:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    alarm = getattr(signal, "alarm", lambda seconds: None)  # ends a read that hangs without a parent
    send(stream, {}, [])
    for line in sys.stdin.buffer:
        request = json.loads(line)
        alarm(request["seconds"])
        send(stream, *answer(request["path"], request["suffix"], request["cells"]))
        alarm(0)


if __name__ == "__main__":
    main()
