"""README.md and docs/: Python examples run on tiny inputs, commands parse, and links and file names exist."""

import copy
import re
import shlex
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import lorun
from lorun.adapters import adapted_view
from lorun.checkpoint import save_network
from lorun.cli import parse
from lorun.denoisers import UNet
from lorun.networks import build_network, network_config
from lorun.training.recipe import RECIPES

ROOT = Path(__file__).parents[2]
# What python -m benchmarks.report writes has tests of its own.
GENERATED = {"benchmarks.md", "lora_conv_roofline.md"}
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    if path.name not in GENERATED
}
# The shapes that comments in the examples promise, for the inputs below.
RESULTS = {
    "README.md": {"restored": (40, 36), "cube": (1, 28, 12, 16), "y": (1, 12, 16 + 54), "x": (1, 28, 12, 16)}
    | {"large": (32, 36, 3)},
    "docs/adapters.md": {"base_result": (1, 8, 6, 6)},
    "docs/cassi.md": {"cube": (1, 28, 12, 16)},
    "docs/compressive_sensing.md": {"restored": (1, 1, 40, 36)},
    "docs/super_resolution.md": {"large": (32, 36, 3), "y": (1, 3, 16, 18), "x": (1, 3, 32, 36)},
    "docs/kernels.md": {"y": (1, 12, 16 + 54), "x": (1, 28, 12, 16), "gram": (12, 16 + 54)},
}
FOLDERS = ("benchmarks", "csrc", "docs", "examples", "lorun", "lorun_kernels", "tests")


def inputs(page: str) -> dict:
    """What the examples of a page are given: tiny tensors by the names that the page uses."""
    mask = torch.rand(12, 16)
    cube = torch.rand(1, 28, 12, 16)
    named = {
        "image": torch.rand(40, 36).numpy(),
        "mask": mask,
        "snapshot": torch.rand(1, 12, 16 + 54),
        "conv": nn.Conv2d(28, 28, 3, padding=1),
        "x": cube,
        "cube": cube,
        "w": cube,
        "rho": 0.1,
        "mu": 0.1,
    }
    if page == "docs/kernels.md":
        base = UNet(28, 4)
        named |= {
            "upsampled": torch.rand(1, 56, 8, 8),
            "skip": torch.rand(1, 28, 8, 8),
            "h": torch.rand(1, 28, 8, 8),
            "network": SimpleNamespace(denoisers=nn.ModuleList(adapted_view(base) for _ in range(2))),
            "noise_level": 0.1,
        }
    if page in ("README.md", "docs/adapters.md"):
        named |= adapters_page()
    if page == "docs/compressive_sensing.md":
        named |= {"denoiser": UNet(1, 4), "x": torch.rand(1, 1, 40, 36), "H": 40, "W": 36}
    if page in ("README.md", "docs/super_resolution.md"):
        named |= {"photo": torch.rand(16, 18, 3).numpy(), "kernel": torch.ones(3, 3).numpy()}
    if page == "docs/super_resolution.md":
        named |= {"x": torch.rand(1, 3, 32, 36)}
    return named


def adapters_page() -> dict:
    """A network of three stages, and what its page does with it."""
    stages = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(3))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = copy.deepcopy(stages)

        def forward(self, y):
            for stage in self.stages:
                y = stage(y)
            return y

    factored = lorun.share_stages(Network(), "stages", form="factored")
    named = {"net": Network(), "trained": Network(), "factored": factored, "y": torch.rand(1, 8, 6, 6)}
    return named | {"torch": torch, "folder": tempfile.mkdtemp()}


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The lines of indented blocks that call lorun, without their comments."""
    joined = text.replace("\\\n", " ")
    return re.findall(r"^    lorun (.+)$", joined, re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [page for page, path in PAGES.items() if python_blocks(path.read_text())])
def test_python_examples_run(page):
    names = inputs(page)
    with torch.no_grad():
        for number, block in enumerate(python_blocks(PAGES[page].read_text())):
            exec(compile(block, f"{page}, example {number}", "exec"), names)
    assert {name: tuple(names[name].shape) for name in RESULTS[page]} == RESULTS[page]


@pytest.mark.parametrize("page", [page for page, path in PAGES.items() if commands(path.read_text())])
def test_commands_are_understood(page, tmp_path, monkeypatch):
    (tmp_path / "my.toml").write_text((RECIPES / "cs25-unet.toml").read_text())
    monkeypatch.chdir(tmp_path)
    text = PAGES[page].read_text()
    for name in re.findall(r"--model (runs/\S+\.safetensors)", text):  # what a training run would have left
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        config = network_config("cs", width=4, stages=1)
        save_network(build_network(config), config, Path(name))
    for command in commands(text):
        parse(shlex.split(command, comments=True))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page].read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (PAGES[page].parent / name).resolve() if name else PAGES[page]
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text()), target


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./*-]*)", PAGES[page].read_text())
    # Names of files to be written: NAME and FAMILY stand for any, inpainting and pixel_mask for a third task.
    example = re.compile(r"NAME|FAMILY|inpainting|pixel_mask")
    for name in named:
        assert example.search(name) or list(ROOT.glob(name.rstrip("/"))), name
