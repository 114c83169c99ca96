"""Parts of the reading process, called in this one; the whole is in test_array_files.py."""

import io

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from lorun.data import array_worker


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_is_its_array(order):
    array = np.asarray(np.arange(24.0).reshape(2, 3, 4), order=order)
    np.testing.assert_array_equal(array_worker.parse_npy(npy(array)), array)


def test_text_is_no_array_of_numbers_and_a_short_file_is_damaged():
    assert array_worker.parse_npy(npy(np.array(["a"]))) is None
    with pytest.raises(ValueError, match="its header declares 24 bytes of float64"):
        array_worker.parse_npy(npy(np.arange(3.0))[:-8])


def test_the_members_that_a_zip_file_lists_are_counted(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.zeros(3), b=np.zeros(3))
    assert array_worker.listed_members(path, comment=0) == 2


@pytest.mark.parametrize("dtype", ["float32", ">u2", "bool", "complex64"])
def test_numbers(dtype):
    assert array_worker.is_numeric(np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["U3", "O", "M8[s]"])
def test_what_is_no_number(dtype):
    assert not array_worker.is_numeric(np.dtype(dtype))


def test_a_cell_array_of_arrays_gives_each_as_matlab_counts_it(tmp_path):
    cell, mixed = np.empty((2, 2), object), np.empty((1, 2), object)
    for number, place in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)], 1):
        cell[place] = np.full((number, 3), number, np.float32)
    mixed[0, :] = [np.ones((2, 2)), "text"]
    sparse = np.empty((1, 1), object)
    sparse[0, 0] = scipy.sparse.csc_matrix(np.eye(3))
    for compressed in (False, True):
        path = tmp_path / f"{compressed}.mat"
        scipy.io.savemat(
            path, {"k": cell, "mixed": mixed, "sparse": sparse, "x": np.eye(2)}, do_compression=compressed
        )
        assert list(array_worker.read_mat5(str(path))) == ["x"]
        read = array_worker.read_mat5_with_cells(str(path))
        assert list(read) == ["x", "k{1}", "k{2}", "k{3}", "k{4}"]
        for number in range(1, 5):
            np.testing.assert_array_equal(read[f"k{{{number}}}"], np.full((number, 3), number))
