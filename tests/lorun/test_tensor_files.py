"""Files of tensors with a header and a digest."""

import pytest
import torch
from safetensors.torch import save_file

from lorun.tensor_files import CheckpointError, open_tensors, read_tensors, write_tensors

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(4, dtype=torch.bfloat16)}


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "deep" / "x.safetensors"
    write_tensors(TENSORS, {"step": 3}, path)
    tensors, header = read_tensors(path)
    assert header["step"] == 3 and len(header["digest"]) == 64
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


def test_an_open_file_is_a_mapping_that_reads_on_demand(tmp_path):
    write_tensors(TENSORS, {}, tmp_path / "x.safetensors")
    with open_tensors(tmp_path / "x.safetensors") as file:
        assert list(file) == ["a", "b"] and len(file) == 2 and "c" not in file
        assert torch.equal(file["b"], TENSORS["b"])
        with pytest.raises(KeyError):
            file["c"]


def test_other_files_are_refused_by_what_they_are(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError, match="no such model file"):
        read_tensors(path)
    path.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_tensors(path)
    save_file(TENSORS, path)
    with pytest.raises(CheckpointError, match="not a LoRun model"):
        read_tensors(path)
    write_tensors(TENSORS, {}, path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="do not match their digest"):
        read_tensors(path)
