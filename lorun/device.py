"""Choosing where a network runs."""

import torch


def choose_device(name: str = "auto") -> torch.device:
    """ "auto" is the first GPU that torch sees, else the CPU; any other name is checked to be usable."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: {name!r} is not usable here ({reason}); expected cpu or a GPU such as cuda"
        ) from error
    return torch.device(name)
