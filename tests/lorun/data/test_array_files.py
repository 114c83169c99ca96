import io
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from lorun.data import array_files, array_worker
from lorun.data.array_files import ArrayReader, read_arrays

RANDOM = np.random.default_rng(0)
CUBE = RANDOM.random((6, 5, 4)).astype(np.float32)
DEPTH = RANDOM.integers(0, 4096, (3, 7)).astype(np.uint16)


def write_mat73(path, arrays, classes=None):
    """As MATLAB does: its header in a user block of 512 bytes, axes in its order, and the class beside."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            item = file.create_dataset(name, data=array.T, chunks=array.T.shape, compression=3)
            kind = {"float64": "double", "float32": "single"}.get(array.dtype.name, array.dtype.name)
            if kind != "float16":  # MATLAB has no such class
                item.attrs["MATLAB_class"] = np.bytes_((classes or {}).get(name, kind))
    text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan 1 00:00:00 2024 HDF5 schema 1.00 ."
    with open(path, "r+b") as file:
        file.write(text.ljust(124) + b"\x00\x02IM")


def write(path, arrays):
    kind = path.name.split("_")[0]
    if kind == "mat73":
        write_mat73(path, arrays)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, arrays, do_compression=kind == "mat5z")
    elif path.suffix == ".npz":
        np.savez_compressed(path, **arrays) if kind == "npzz" else np.savez(path, **arrays)
    elif path.suffix == ".npy":
        np.save(path, next(iter(arrays.values())))
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    return path


FILES = ["mat5_.mat", "mat5z_.mat", "mat73_.mat", "npz_.npz", "npzz_.npz", "npy_.npy", "h5_.h5", "h5_.HDF5"]


@pytest.mark.parametrize("name", FILES)
def test_arrays_read_as_they_were_written(tmp_path, name):
    arrays = {"array": CUBE} if name.endswith("npy") else {"img": CUBE, "raw": DEPTH}
    path = write(tmp_path / name, arrays)
    read = read_arrays(path)
    assert list(read) == list(arrays)
    for key, array in arrays.items():
        assert read[key].dtype == array.dtype
        np.testing.assert_array_equal(read[key], array)


ARRAYS = {
    "big-endian": CUBE.astype(">f4"),
    "fortran": np.asfortranarray(CUBE),
    "half": CUBE.astype(np.float16),
    "strided": CUBE[::2, 1:, ::-1],
    "empty": CUBE[:0],
}
KEPT = [
    (name, array)
    for name in ("mat73_.mat", "npz_.npz", "npy_.npy", "h5_.h5")
    for array in ARRAYS
    # MATLAB writes an empty array in another way, which has a test of its own.
    if (name, array) != ("mat73_.mat", "empty")
]


@pytest.mark.parametrize("name, array", KEPT)
def test_byte_order_memory_order_and_width_are_kept(tmp_path, name, array):
    array = ARRAYS[array]
    (read,) = read_arrays(write(tmp_path / name, {"array": array})).values()
    assert read.dtype == array.dtype.newbyteorder("=") and read.dtype.isnative
    np.testing.assert_array_equal(read, array)


def test_big_endian_mat5(tmp_path):
    # As MATLAB on a big-endian machine writes x = single([1 2; 3 4]).
    def element(kind, data):
        return kind.to_bytes(4, "big") + len(data).to_bytes(4, "big") + data + bytes(-len(data) % 8)

    values = np.array([1, 3, 2, 4], ">f4").tobytes()
    matrix = (
        element(6, b"\0\0\0\x07\0\0\0\0")
        + element(5, np.array([2, 2], ">i4").tobytes())
        + element(1, b"x")
        + element(7, values)
    )
    path = tmp_path / "big.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI" + element(14, matrix))
    read = read_arrays(path)["x"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, [[1, 2], [3, 4]])


def test_matlab_classes_text_and_structs(tmp_path):
    contents = {
        "whole": np.array([[0.0, 1.0]]),
        "flag": np.array([[True, False]]),
        "wave": np.array([[1 + 2j]]),
        "text": "hello",
        "struct": {"inner": np.ones(3)},
        "cell": np.array([[np.ones(2), "a"]], dtype=object),
        "sparse": scipy.sparse.csc_matrix(np.eye(3)),
    }
    scipy.io.savemat(tmp_path / "five.mat", contents)
    read = read_arrays(tmp_path / "five.mat")
    assert {name: array.dtype.name for name, array in read.items()} == {
        "whole": "float64",
        "flag": "bool",
        "wave": "complex128",
    }
    assert read["wave"][0, 0] == 1 + 2j


def test_whole_doubles_that_matlab_stores_as_bytes_are_doubles(tmp_path):
    path = tmp_path / "narrow.mat"
    scipy.io.savemat(path, {"x": np.arange(8, dtype=np.uint8)})
    # The class in the array flags from uint8 (9) to double (6), as MATLAB writes 0:7.
    data = bytearray(path.read_bytes())
    assert data[144] == 9
    data[144] = 6
    path.write_bytes(data)
    assert read_arrays(path)["x"].dtype == np.float64


def test_matlab_73_classes_and_empty_arrays(tmp_path):
    path = tmp_path / "seven.mat"
    arrays = {"flag": np.array([[1, 0]], np.uint8), "text": np.array([[104, 105]], np.uint16)}
    write_mat73(path, arrays, {"flag": "logical", "text": "char"})
    with h5py.File(path, "r+") as file:
        file["empty"] = np.array([0, 3], np.uint64)
        file["empty"].attrs["MATLAB_class"] = np.bytes_("single")
        file["empty"].attrs["MATLAB_empty"] = np.uint8(1)
        pairs = np.array([(1.0, 2.0)], [("real", "f8"), ("imag", "f8")])
        file["wave"] = pairs
        file["struct/inner"] = np.ones(3)
    read = read_arrays(path)
    assert sorted(read) == ["empty", "flag", "wave"]
    assert read["flag"].dtype == bool and read["flag"].tolist() == [[True, False]]
    assert read["empty"].shape == (0, 3) and read["empty"].dtype == np.float32
    assert read["wave"].tolist() == [1 + 2j]


def test_nested_hdf5_and_scalars(tmp_path):
    with h5py.File(tmp_path / "nested.h5", "w") as file:
        file["scene/cube"] = CUBE
        file["gain"] = 2.5
        file["note"] = "text"
    read = read_arrays(tmp_path / "nested.h5")
    assert sorted(read) == ["gain", "scene/cube"] and read["gain"] == 2.5


def test_npz_leaves_out_text_and_objects_unread(tmp_path):
    path = tmp_path / "mixed.npz"
    np.savez(path, cube=CUBE, origin=np.array("here"), trap=np.array([{"a": 1}], dtype=object))
    assert list(read_arrays(path)) == ["cube"]
    np.save(tmp_path / "trap.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="trap.npy: holds text or Python objects; save an array of numbers"):
        read_arrays(tmp_path / "trap.npy")


def test_files_that_are_not_there_or_not_arrays(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.mat: no such file"):
        read_arrays(tmp_path / "gone.mat")
    with pytest.raises(ValueError, match=r"a.tif: expected a file that ends in .mat, .h5"):
        read_arrays(tmp_path / "a.tif")
    for suffix in array_files.SUFFIXES:
        path = tmp_path / f"noise{suffix}"
        for content in (b"", RANDOM.bytes(3000)):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=rf"noise{suffix}: damaged or not a {suffix} file \(.*write"):
                read_arrays(path)


def test_hdf5_named_mat_is_refused_as_its_axes_are_unknown(tmp_path):
    with h5py.File(tmp_path / "python.mat", "w") as file:
        file["cube"] = CUBE
    with pytest.raises(ValueError, match="python.mat: is HDF5 without MATLAB's header; .*rename it to .h5"):
        read_arrays(tmp_path / "python.mat")


def test_values_kept_in_other_files_are_not_fetched(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(64))
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file.create_dataset("x", (64,), np.uint8, external=[(str(tmp_path / "secret"), 0, 64)])
        file["linked"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x")
    with pytest.raises(ValueError, match="keeps the values of x in other files"):
        read_arrays(tmp_path / "outside.h5")


def lying_npy(shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "<f8"})
    return file.getvalue() + bytes(64)


@pytest.mark.parametrize("shape", [(2**40,), (2**31, 2**31, 2**31), (-1, 8), (3,)])
def test_headers_that_declare_what_the_file_does_not_hold(tmp_path, shape):
    (tmp_path / "lie.npy").write_bytes(lying_npy(shape))
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("a.npy", lying_npy(shape))
    for name in ("lie.npy", "lie.npz"):
        with pytest.raises(ValueError, match=f"{name}: damaged .*declares"):
            read_arrays(tmp_path / name)


def test_arrays_beyond_the_limit_are_refused_before_they_are_made(tmp_path):
    with h5py.File(tmp_path / "vast.h5", "w") as file:
        file.create_dataset("x", (2**20, 2**20), np.uint8, chunks=(1024, 1024))
        file.create_dataset("small", data=CUBE)
    with pytest.raises(ValueError, match="vast.h5: holds 1024.0 GiB of arrays, above the limit of 4 GiB"):
        read_arrays(tmp_path / "vast.h5")
    with h5py.File(tmp_path / "hollow.h5", "w") as file:
        file.create_dataset("x", (3 * 2**30,), np.uint8, chunks=(2**20,))
    with pytest.raises(ValueError, match="x declares 3221225472 bytes, more than"):
        read_arrays(tmp_path / "hollow.h5")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(5):
            archive.writestr(f"{index}.npy", bytes(2**24))
    data = (tmp_path / "bomb.npz").read_bytes()
    (tmp_path / "bomb.npz").write_bytes(data.replace((2**24).to_bytes(4, "little"), b"\xff\xff\xff\xff"))
    with pytest.raises(ValueError, match="bomb.npz: damaged"):
        read_arrays(tmp_path / "bomb.npz")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is limited on Linux only")
def test_memory_is_limited_while_a_file_is_read():
    with pytest.raises(MemoryError), array_worker.limited_memory(1000):
        np.empty(2**30, np.uint8)
    np.empty(2**30, np.uint8)


@pytest.fixture
def small(tmp_path):
    np.save(tmp_path / "a.npy", CUBE)
    return tmp_path / "a.npy"


def test_a_reader_that_dies_hangs_or_babbles_becomes_one_error_and_is_replaced(small, tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    monkeypatch.setattr(array_worker, "__file__", str(script))
    start = "import os, sys, time\nw = sys.stdout.buffer\nw.write(bytes([2] + [0] * 7) + b'{}')\nw.flush()\n"
    start += "sys.stdin.buffer.readline()\n"
    cases = {
        "os.kill(os.getpid(), 11)": r"\(the reader died with signal 11\)",
        "sys.exit(3)": r"\(the reader died with exit code 3\)",
        "time.sleep(60)": r"\(the reader did not finish within 1 s\)",
        "w.write(bytes(8)); w.flush(); time.sleep(60)": r"\(the reader's answer makes no sense\)",
    }
    with ArrayReader(seconds=1) as reader:
        for ending, words in cases.items():
            script.write_text(start + ending)
            with pytest.raises(
                ValueError, match=f"a.npy: damaged or not a .npy file {words}; write it again"
            ):
                reader.read(small)
        monkeypatch.undo()
        np.testing.assert_array_equal(reader.read(small)["array"], CUBE)


def test_a_reader_that_cannot_start_is_not_blamed_on_the_file(small, tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text("raise SystemExit(5)")
    monkeypatch.setattr(array_worker, "__file__", str(tmp_path / "worker.py"))
    with (
        pytest.raises(RuntimeError, match="does not start .*worker.py: exit code 5"),
        ArrayReader() as reader,
    ):
        reader.read(small)


def test_a_reader_that_was_killed_between_reads_is_replaced(small):
    with ArrayReader() as reader:
        reader.read(small)
        os.kill(reader._process.pid, signal.SIGTERM)
        reader._process.wait()
        np.testing.assert_array_equal(reader.read(small)["array"], CUBE)


def test_threads_share_one_reader(small):
    with ArrayReader() as reader:
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(reader.read(small)["array"])) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 8
        for array in results:
            np.testing.assert_array_equal(array, CUBE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_reads_with_a_child_of_its_own(small):
    with ArrayReader() as reader:
        reader.read(small)
        child = os.fork()
        if child == 0:
            try:
                same = all(np.array_equal(reader.read(small)["array"], CUBE) for _ in range(20))
                reader.close()
            finally:
                os._exit(0 if same else 1)
        for _ in range(20):
            np.testing.assert_array_equal(reader.read(small)["array"], CUBE)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not os.path.exists("/proc"), reason="looks for the child in /proc")
@pytest.mark.parametrize("ending", ["", "os.kill(os.getpid(), 9)"])
def test_no_child_outlives_this_process(small, ending):
    code = (
        "import os, sys\nfrom lorun.data import array_files\narray_files.read_arrays(sys.argv[1])\n"
        f"print(array_files._shared._process.pid, flush=True)\n{ending}"
    )
    done = subprocess.run([sys.executable, "-c", code, str(small)], capture_output=True, text=True)
    gone = f"/proc/{int(done.stdout)}"
    for _ in range(100):
        if not os.path.exists(gone):
            return
        time.sleep(0.1)
    pytest.fail("the child is still there")


def test_the_child_imports_no_torch():
    code = (
        f"import sys; sys.argv = ['x']; exec(open({array_worker.__file__!r}).read().split('if __name__')[0])"
    )
    code += "; import scipy.io.matlab, h5py; print('torch' in sys.modules, 'lorun' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def mutations(data, count, seed):
    random = np.random.default_rng(seed)
    for index in range(count):
        mutated = bytearray(data)
        where = int(random.integers(len(data)))
        if index % 4 == 0:
            del mutated[where:]
        elif index % 4 == 1:
            length = int(random.integers(1, 64))
            mutated[where : where + length] = random.bytes(len(mutated[where : where + length]))
        else:
            mutated[where] ^= 1 << int(random.integers(8))
        yield bytes(mutated)


@pytest.mark.parametrize("name", FILES[:6])
def test_a_thousand_damaged_files_give_arrays_or_one_error(tmp_path, name):
    original = {"array": CUBE} if name.endswith("npy") else {"img": CUBE, "raw": DEPTH}
    path = write(tmp_path / name, original)
    read, refused, memory = 0, 0, 0
    with ArrayReader(seconds=5) as reader:
        for mutated in mutations(path.read_bytes(), 1000, seed=len(name)):
            path.write_bytes(mutated)
            try:
                arrays = reader.read(path)
            except ValueError as error:
                refused += 1
                assert str(error).startswith(f"{path}: ") and len(str(error)) < 500
                arrays = {}
            else:
                read += 1
            memory = max(memory, peak_memory(reader))
            if name.startswith("npz") and arrays:
                assert set(arrays) == set(original)
            if name.startswith(("mat5z", "npz")):
                for key, array in arrays.items():
                    np.testing.assert_array_equal(array, original[key])
    assert read > 0 and refused > 250
    # With scipy and h5py the child takes about 70 MiB.
    assert memory < 250 * 2**20


def peak_memory(reader):
    """The most bytes that the child has held at a time; 0 where there is none, or no /proc."""
    try:
        status = Path(f"/proc/{reader._process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (AttributeError, OSError):
        return 0
