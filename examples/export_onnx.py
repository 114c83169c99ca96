"""A network with adapters as an ONNX file that knows nothing of LoRun, checked in ONNX Runtime.

Run it: python examples/export_onnx.py [FILE]
"""

import importlib.util
import sys
import tempfile
from pathlib import Path

import torch
from drop_in import SmallDUN, share_one_base, train
from torch import nn

import lorun

NEEDED = ("onnx", "onnxscript", "onnxruntime")


def export(dun: nn.Module, path: Path) -> None:
    """Merge every adapter into a weight of its own, and write the network that this makes."""
    plain = lorun.to_plain(dun).eval()
    y = torch.rand(1, 1, 48, 64)
    mask = (torch.rand_like(y) < 0.5).float()
    sizes = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    torch.onnx.export(
        plain, (y * mask, mask), path, input_names=["y", "mask"], dynamic_shapes=(sizes, sizes), verbose=False
    )


@torch.no_grad()
def largest_difference(dun: nn.Module, path: Path) -> float:
    """Between the network and the file, for an image of another size than the one it was exported with."""
    import onnxruntime

    y = torch.rand(1, 1, 80, 56)
    mask = (torch.rand_like(y) < 0.5).float()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (restored,) = session.run(None, {"y": (y * mask).numpy(), "mask": mask.numpy()})
    return (torch.from_numpy(restored) - dun(y * mask, mask)).abs().max().item()


def main(path: Path) -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"this example needs {', '.join(missing)}: pip install {' '.join(missing)}")
    torch.manual_seed(0)
    dun = share_one_base(SmallDUN(width=16))
    train(dun, steps=20)
    export(dun, path)
    size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    print(f"{path.name}: {size / 1024:.0f} KiB")
    print(f"ONNX Runtime differs from torch by at most {largest_difference(dun, path):.1e}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder) / "network.onnx")
