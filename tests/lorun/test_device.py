import pytest
import torch

from lorun.device import choose_device


def test_auto_is_a_gpu_if_torch_sees_one():
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["warp", "meta", "cuda:99"])
def test_devices_that_cannot_be_used_here(name):
    with pytest.raises(ValueError, match=f"device: '{name}' is not usable here .*; expected cpu or a GPU"):
        choose_device(name)
