import pytest
import torch

from lorun_kernels._checks import check_input, check_tensors


def test_the_first_argument_that_does_not_fit_is_named():
    x = torch.zeros(2)
    check_tensors("op", x=x, y=x)
    with pytest.raises(TypeError, match="op: y must be a torch.Tensor, got list"):
        check_tensors("op", x=x, y=[1.0], z=None)
    with pytest.raises(ValueError, match="op: y must be on the device of x, cpu, got meta; move one"):
        check_tensors("op", x=x, y=x.to("meta"))


def test_an_input_has_the_weights_dtype_unless_autocast_converts_it():
    x, weight = torch.zeros(2), torch.zeros(2, dtype=torch.float64)
    with pytest.raises(
        TypeError, match="op: input must have the dtype of weight, torch.float64, got torch.float32"
    ):
        check_input("op", x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        check_input("op", x, weight)
    with pytest.raises(ValueError, match="input must be on the device of weight"):
        check_input("op", x.to("meta"), x)
    with pytest.raises(TypeError, match="input must be a torch.Tensor, got NoneType"):
        check_input("op", None, x)
