"""What must stay as it is for files, scripts and users: written down by `python compatibility.py FOLDER`.

Run it on the code whose behaviour is to be kept; test_compatibility.py compares the code as it is now.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch

import lorun
import lorun_kernels  # noqa: F401, registers the ops
from lorun.cli import main

HELP = {
    "restore": ["--help"],
    "restore cassi": ["--task", "cassi", "--help"],
    "eval": ["--help"],
    "eval cassi": ["--task", "cassi", "--help"],
    "train": ["--help"],
    "restore sr": ["--task", "sr", "--help"],
    "eval sr": ["--task", "sr", "--help"],
    "train sr": ["--recipe", "sr-resunet", "--help"],
    "train cassi": ["--recipe", "cassi-unet", "--help"],
    "info": ["--help"],
    "demo": ["--help"],
}


def image(*shape: int) -> torch.Tensor:
    """Smooth and textured values in [0, 1], the same on every machine."""
    index = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    return torch.from_numpy((0.5 + 0.3 * np.sin(index / 7) + 0.2 * np.cos(index * index)).astype(np.float32))


def model_outputs() -> dict[str, np.ndarray]:
    """What each shipped model restores of a fixed measurement."""
    outputs = {}
    for name in lorun.list_models():
        net = lorun.create_model(name)
        with torch.no_grad():
            if isinstance(net.physics, lorun.physics.SuperResolution):
                blur = lorun.physics.SuperResolution(image(5, 4) / image(5, 4).sum(), 3, noise_level=0.01)
                restored = net(blur.A(image(1, 3, 33, 24)), physics=blur)
            elif isinstance(net.physics, lorun.physics.CASSI):
                camera = lorun.physics.CASSI((image(16, 21) > 0.5).float())
                restored = net(camera.A(image(1, 28, 16, 21)), physics=camera)
            else:
                restored = net(net.physics.A(image(1, 1, 70, 45)), size=(70, 45))
        outputs[name] = restored.numpy()
    return outputs


def parameters(name: str) -> str:
    """A digest of the names, shapes and order of everything in a shipped model's state dict."""
    state = lorun.create_model(name).state_dict()
    lines = [f"{key} {tuple(tensor.shape)}" for key, tensor in state.items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def op_schemas() -> list[str]:
    schemas = torch._C._jit_get_all_schemas()
    return sorted(str(schema) for schema in schemas if schema.name.startswith("lorun::"))


def flags(command: str, arguments: list[str], capture) -> list[str]:
    """The flags that a command's help lists."""
    printed = capture(lambda: main([command, *arguments]))
    return sorted(set(re.findall(r"(?<![\w-])--?[a-z][\w.-]*", printed)) - {"--help", "-h"})


def printed_by(call) -> str:
    import contextlib
    import io

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        call()
    return text.getvalue()


def record() -> dict:
    return {
        "parameters": {name: parameters(name) for name in lorun.list_models()},
        "op_schemas": op_schemas(),
        "flags": {name: flags(name.split()[0], arguments, printed_by) for name, arguments in HELP.items()},
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    np.savez_compressed(folder / "model-outputs.npz", **model_outputs())
    (folder / "compatibility.json").write_text(json.dumps(record(), indent=1) + "\n")
