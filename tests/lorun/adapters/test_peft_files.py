"""PEFT's files both ways, against peft itself: what it merges, and what it computes with files of ours."""

import copy
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lorun.adapters.adapter_set import LayerAdapter
from lorun.adapters.exchange import ExchangeError, Target
from lorun.adapters.peft_files import from_peft, from_peft_state, to_peft
from lorun.errors import ArgumentError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def peft():
    # torchvision's wheels on PyPI are built for CUDA: beside a CPU build of torch, peft's import of it fails
    # unless these ops are declared.
    declared = torch.library.Library("torchvision", "FRAGMENT")
    for op in ("nms", "qnms") if torch.version.cuda is None else ():
        if not hasattr(torch.ops.torchvision, op):
            declared.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield pytest.importorskip("peft", reason="peft is not installed: pip install '.[bench]'")


class Net(nn.Module):
    """Names of which one ends in another, and layers of several kernels, strides and paddings."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.stages = nn.Sequential(
            nn.ModuleDict({"conv": nn.Conv2d(6, 8, (3, 1), stride=2, padding="valid")}),
            nn.ModuleDict({"conv": nn.Conv2d(8, 5, 1, dilation=2)}),
        )
        self.head = nn.Linear(5, 7)
        self.double()

    def forward(self, x):
        x = self.stages[1]["conv"](self.stages[0]["conv"](self.conv(x).tanh()).tanh())
        return self.head(x.mean((2, 3)))


LAYERS = ["conv", "stages.0.conv", "stages.1.conv", "head"]
IMAGE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8).sin().double()


def targets_of(model):
    return {
        f"{name}.weight": Target(tuple(layer.weight.shape), layer.groups, layer.dilation, layer.padding_mode)
        if isinstance(layer, nn.Conv2d)
        else Target(tuple(layer.weight.shape))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }


def save_theirs(peft, model, directory, **config):
    """Adapters of PEFT with random factors in a directory, and peft's model of them."""
    config = {"r": 2, "lora_alpha": 3, "target_modules": LAYERS} | config
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**config))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    wrapped.save_pretrained(directory)
    return wrapped


def adapter(model, name, form, rank, scaling=1.0):
    shape = tuple(model.get_parameter(name).shape)
    if form == "full":
        return LayerAdapter(shape, form, delta=torch.randn(shape), scaling=scaling)
    rows, columns, inner = shape[0], math.prod(shape[1:]), 1
    if form == "reshape" and len(shape) == 4:
        rows, columns, inner = shape[0] * shape[2], shape[1] * shape[3], min(shape[2:])
    up, down = torch.randn(rows, rank * inner), torch.randn(rank * inner, columns)
    return LayerAdapter(shape, form, up=up, down=down, scaling=scaling)


def delta_of(own):
    """The added weight in float64, from the definition of the forms."""
    product = own.delta.double() if own.delta is not None else own.up.double() @ own.down.double()
    return own.scaling * product.reshape(own.shape)


def check_peft_computes(peft, model, adapters, directory, relative_error):
    """peft, with the written files, computes what the model does whose weights have the adapters added."""
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for name, own in adapters.items():
            expected.get_parameter(name).add_(delta_of(own))
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), directory)
    adapted = {name for name, module in loaded.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == {name.removesuffix(".weight") for name in adapters}
    with torch.no_grad():
        assert relative_error(loaded(IMAGE), expected(IMAGE)) < 1e-6
        assert relative_error(model(IMAGE), expected(IMAGE)) > 1e-2


VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "ranks": {"rank_pattern": {"^conv": 3, "stages.0.conv": 4}, "alpha_pattern": {"^conv": 7, ".*1.conv": 1}},
    "gaussian": {"init_lora_weights": "gaussian", "lora_dropout": 0.1, "target_modules": ["conv"]},
}  # fmt: skip


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_from_peft_adds_what_peft_merges(peft, tmp_path, relative_error, variant):
    model = Net()
    merged = save_theirs(peft, model, tmp_path, **VARIANTS[variant]).merge_and_unload().state_dict()
    expected = {name: merged[name] - own for name, own in model.state_dict().items() if own.ndim > 1}
    expected = {name: delta for name, delta in expected.items() if delta.any()}
    ours = from_peft(tmp_path, targets_of(model))
    assert set(ours) == set(expected) and len(ours) == (3 if variant == "gaussian" else 4)
    for name, delta in expected.items():
        assert ours[name].form == "factored" and ours[name].shape == tuple(delta.shape)
        assert relative_error(ours[name].added(), delta) < 1e-6
    if variant == "ranks":
        assert [ours[f"{layer}.weight"].up.shape[1] for layer in LAYERS] == [3, 4, 2, 2]
        assert ours["conv.weight"].scaling == 7 / 3 and ours["stages.1.conv.weight"].scaling == 1 / 2


def test_from_peft_reads_another_adapter_and_a_state(peft, tmp_path, relative_error):
    model = Net()
    wrapped = save_theirs(peft, model, tmp_path)
    wrapped.add_adapter("other", peft.LoraConfig(r=3, lora_alpha=1, target_modules=["head"]))
    wrapped.set_adapter("other")
    nn.init.normal_(wrapped.base_model.model.head.lora_B["other"].weight)
    wrapped.save_pretrained(tmp_path)
    ours = from_peft(tmp_path, targets_of(model), subfolder="other")
    assert list(ours) == ["head.weight"] and ours["head.weight"].up.shape == (7, 3)
    state = peft.get_peft_model_state_dict(wrapped, adapter_name="other")
    config = wrapped.peft_config["other"].to_dict()
    again = from_peft_state(state, config, targets_of(model))["head.weight"]
    assert again.up.equal(ours["head.weight"].up) and again.scaling == 1 / 3
    # Renamed keys, as of a model that was wrapped in another one.
    state = {key.replace("base_model.model.", "model.net."): tensor for key, tensor in state.items()}
    assert list(from_peft_state(state, config, targets_of(model), prefix="model.net.")) == ["head.weight"]
    with pytest.raises(ExchangeError, match="net.head: no layer .*'conv.weight'"):
        from_peft_state(state, config, targets_of(model), prefix="model.")


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("layers", [LAYERS, LAYERS[:1], LAYERS[:3]])
def test_peft_computes_what_to_peft_wrote(peft, tmp_path, relative_error, rslora, layers):
    """Also for "conv" alone, the end of other names: PEFT reads the names in lists and patterns as ends."""
    model, directory = Net(), tmp_path / "new" / "folder"
    adapters = {
        "conv.weight": adapter(model, "conv.weight", "factored", 4, scaling=0.7),
        "stages.0.conv.weight": adapter(model, "stages.0.conv.weight", "factored", 2, scaling=1.5),
        "stages.1.conv.weight": adapter(model, "stages.1.conv.weight", "reshape", 2, scaling=1.5),
        "head.weight": adapter(model, "head.weight", "reshape", 3, scaling=-1.0),
    }
    adapters = {f"{layer}.weight": adapters[f"{layer}.weight"] for layer in layers}
    errors = to_peft(adapters, directory, targets_of(model), rslora=rslora)
    assert errors == dict.fromkeys(adapters, 0.0)
    check_peft_computes(peft, model, adapters, directory, relative_error)
    back = from_peft(directory, targets_of(model))
    for name, own in adapters.items():
        assert back[name].up.equal(own.up) and back[name].down.equal(own.down)
        assert back[name].scaling == pytest.approx(own.scaling, rel=1e-12)
    config = json.loads((directory / CONFIG).read_text())
    assert config["use_rslora"] is rslora and config["r"] == (4 if layers == ["conv"] else 2)


def test_to_peft_of_other_forms_by_svd(peft, tmp_path, relative_error):
    model = Net()
    adapters = {
        "conv.weight": adapter(model, "conv.weight", "reshape", 1, scaling=0.7),
        "stages.0.conv.weight": adapter(model, "stages.0.conv.weight", "reshape", 2, scaling=-0.4),
        "head.weight": adapter(model, "head.weight", "full", 0, scaling=0.2),
    }
    errors = to_peft(adapters, tmp_path, targets_of(model))
    assert set(errors) == set(adapters) and all(0 < error < 1e-6 for error in errors.values())
    check_peft_computes(peft, model, adapters, tmp_path, relative_error)
    back = from_peft(tmp_path, targets_of(model))
    for name, own in adapters.items():
        rank = torch.linalg.matrix_rank(delta_of(own).flatten(1), rtol=1e-6).item()
        assert back[name].up.shape[1] == rank
        left_out = (back[name].added().double() - delta_of(own)).norm() / delta_of(own).norm()
        assert errors[name] == pytest.approx(left_out.item(), abs=1e-7)


@pytest.mark.parametrize("cut", [{"rank": 2}, {"tolerance": 0.5}, {"rank": 999}])
def test_to_peft_at_a_rank_is_the_best_of_that_rank(tmp_path, cut):
    model = Net()
    adapters = {
        "conv.weight": adapter(model, "conv.weight", "full", 0, scaling=2.0),
        "head.weight": adapter(model, "head.weight", "full", 0),
        "stages.0.conv.weight": adapter(model, "stages.0.conv.weight", "factored", 3),
    }
    errors = to_peft(adapters, tmp_path, targets_of(model), **cut)
    back = from_peft(tmp_path, targets_of(model))
    for name in ("conv.weight", "head.weight"):
        values = torch.linalg.svdvals(delta_of(adapters[name]).flatten(1))
        left_out = [(values[rank:].norm() / values.norm()).item() for rank in range(len(values) + 1)]
        within = next(rank for rank, one in enumerate(left_out) if one <= cut.get("tolerance", 0))
        rank = min(cut.get("rank", within), len(values))
        assert back[name].up.shape[1] == rank and errors[name] == pytest.approx(left_out[rank], 1e-5, 1e-6)
    # What is factored already is never cut off.
    assert back["stages.0.conv.weight"].up.shape[1] == 3 and errors["stages.0.conv.weight"] == 0


def peft_s_adapter_is_one_of_the_weight(peft, layer, directory):
    """Whether peft computes with its adapter apart what it does with the adapter merged."""
    model = nn.Sequential(layer).double()
    wrapped = save_theirs(peft, model, directory, target_modules=["0"])
    image = torch.randn(1, 4, 9, 9).double()
    try:
        return torch.allclose(wrapped(image), wrapped.merge_and_unload()(image))
    except RuntimeError:  # The sizes of both paths differ, or peft does not merge.
        return False


def test_a_1x1_convolution_has_no_dilation(peft, tmp_path):
    layer = nn.Conv2d(4, 6, 1, dilation=2)
    assert peft_s_adapter_is_one_of_the_weight(peft, layer, tmp_path)
    assert list(from_peft(tmp_path, targets_of(nn.Sequential(layer)))) == ["0.weight"]


UNLIKE = [("groups", 2), ("dilation", (2, 2)), ("dilation", (1, 2)), ("padding_mode", "reflect")]


@pytest.mark.parametrize(("setting", "value"), UNLIKE)
def test_convolutions_that_peft_adapts_otherwise(peft, tmp_path, setting, value):
    layer = nn.Conv2d(4, 6, 3, padding=1, **{setting: value})
    words = re.escape(f"{setting}={value!r}")
    assert not peft_s_adapter_is_one_of_the_weight(peft, layer, tmp_path)
    model = nn.Sequential(layer)
    with pytest.raises(ExchangeError, match=f"^0.weight: .*got {words}; leave its adapter out"):
        from_peft(tmp_path, targets_of(model))
    shape = tuple(layer.weight.shape)
    own = LayerAdapter(shape, "full", delta=torch.ones(shape), groups=layer.groups)
    with pytest.raises(ExchangeError, match=f"^0.weight: .*got {words}; leave its adapter out"):
        to_peft({"0.weight": own}, tmp_path / "ours", targets_of(model))
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "use_dora: expected None.*got True.*merge_and_unload"),
        ({"bias": "lora_only"}, "bias: expected 'none'"),
        ({"bias": "all"}, "bias: expected 'none'"),
        ({"lora_bias": True}, "lora_bias: "),
        ({"modules_to_save": ["head"], "target_modules": ["conv"]}, "modules_to_save: "),
        ({"init_lora_weights": "pissa", "target_modules": ["head"]}, "init_lora_weights: .*'pissa'"),
    ],
)
def test_what_peft_saves_that_is_no_plain_lora(peft, tmp_path, config, words):
    model = Net().float()
    save_theirs(peft, model, tmp_path, **config)
    with pytest.raises(ExchangeError, match=words):
        from_peft(tmp_path, targets_of(model))


def test_tensors_of_other_kinds_are_refused_whatever_the_config_says(peft):
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0", "1"], use_dora=True))
    state = peft.get_peft_model_state_dict(wrapped)
    targets = {"0.weight": Target((9, 4)), "1.weight": Target((3, 4))}
    for words in ("lora_embedding_A", "lora_magnitude_vector"):
        own = {key: tensor for key, tensor in state.items() if words in key}
        with pytest.raises(ExchangeError, match=f"{words}.*: expected a name that ends in .lora_A.weight or"):
            from_peft_state(own, {"r": 2, "lora_alpha": 1}, targets)


TARGETS = {"head.weight": Target((7, 5))}
HEAD = LayerAdapter((7, 5), "factored", up=torch.ones(7, 2), down=torch.ones(2, 5))


def written(directory):
    directory.mkdir(exist_ok=True)
    own = replace(HEAD, up=torch.randn(7, 2))
    to_peft({"head.weight": own}, directory, TARGETS)
    return own


def test_names_and_links_that_lead_out_of_the_directory(tmp_path):
    outside, directory = tmp_path / "outside", tmp_path / "adapters"
    own = written(outside)
    written(directory)
    os.symlink(outside, directory / "link")
    for name in ("../outside", str(outside), "a/../../outside", "link"):
        with pytest.raises(ValueError, match="expected a file inside .*adapters, got .*outside"):
            from_peft(directory, TARGETS, subfolder=name)
    for name in (CONFIG, WEIGHTS):
        (directory / name).unlink()
        os.symlink(outside / name, directory / name)
        for use in (lambda: from_peft(directory, TARGETS), lambda: written(directory)):
            with pytest.raises(ValueError, match=f"{name}: expected a file inside"):
                use()
        (directory / name).unlink()
        written(directory)
    # A directory that is a link itself is the caller's choice.
    os.symlink(outside, tmp_path / "alias")
    assert from_peft(tmp_path / "alias", TARGETS)["head.weight"].up.equal(own.up)


def test_damaged_and_missing_files(tmp_path):
    def check(name, content, error, words):
        written(tmp_path)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(whole[:content] if isinstance(content, int) else content)
        with pytest.raises(error, match=words):
            from_peft(tmp_path, TARGETS)

    for content in (-3, 20, 0, b"\xff" * 64):
        check(WEIGHTS, content, ExchangeError, f"{WEIGHTS}: damaged, or not a safetensors file")
    for content in (-9, 0, b"\0", b"\xff", b"[" * 100_000):
        check(CONFIG, content, ExchangeError, f"{CONFIG}: damaged, or no JSON")
    check(CONFIG, b"[]", ExchangeError, "expected a JSON object, got list")
    check(CONFIG, None, FileNotFoundError, f"{CONFIG}: no such file")
    check(WEIGHTS, None, FileNotFoundError, f"{WEIGHTS}: no such file")
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    check(WEIGHTS, None, ExchangeError, "holds a pickle; save it as safetensors")


@pytest.mark.parametrize(("owner", "name"), [(os, "replace"), (Path, "write_bytes"), (Path, "write_text")])
def test_a_write_that_fails_leaves_both_old_files(tmp_path, monkeypatch, owner, name):
    written(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(path, content):
        if owner is Path:
            with path.open("wb") as file:
                file.write(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(owner, name, fails)
        written(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    written(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() != before[WEIGHTS] and len(list(tmp_path.iterdir())) == 2


def full(delta, scaling=1.0):
    return LayerAdapter((7, 5), "full", delta=delta, scaling=scaling)


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        ({}, "adapters: expected at least one"),
        ({"x.weight": HEAD}, "x: no layer of the model"),
        ({"position": HEAD}, "position: expected the name of a layer's weight"),
        ({"weight": HEAD}, "weight: PEFT adapts no model that is one layer"),
        ({"square.weight": HEAD}, r"square.weight: expected an adapter of a weight \(5, 5\).* of \(7, 5\)"),
        ({"head.weight": LayerAdapter((7, 5), "full")}, "head.weight: expected factors"),
        ({"head.weight": full(torch.ones(5, 7))}, "head.weight: expected factors"),
        ({"head.weight": full(torch.ones(7, 5) / 0)}, "head.weight: .*NaN or Inf"),
        ({"head.weight": full(torch.ones(7, 5), scaling=math.inf)}, "finite scaling"),
        ({"head.weight": replace(HEAD, down=torch.ones(2, 5) / 0)}, "head.weight: .*NaN or Inf"),
        ({"head.weight": replace(HEAD, down=torch.ones(3, 5))}, "head.weight: expected factors of shapes"),
    ],
)  # fmt: skip
def test_adapters_that_are_not_written(tmp_path, adapters, words):
    targets = TARGETS | {"weight": Target((7, 5)), "square.weight": Target((5, 5))}
    with pytest.raises(ExchangeError, match=words):
        to_peft(adapters, tmp_path / "a", targets)
    assert not (tmp_path / "a").exists()


def test_arguments_of_to_peft(tmp_path):
    for settings, words in (
        ({"rank": 0}, "rank: expected at least 1, got 0"),
        ({"tolerance": math.nan}, "tolerance: expected 0 to below 1, got nan"),
    ):
        with pytest.raises(ArgumentError, match=words):
            to_peft({"head.weight": HEAD}, tmp_path, TARGETS, **settings)
    (tmp_path / WEIGHTS).mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        to_peft({"head.weight": HEAD}, tmp_path, TARGETS)
    assert not (tmp_path / CONFIG).exists()


def test_to_peft_of_an_adapter_that_adds_nothing(tmp_path):
    assert to_peft({"head.weight": full(torch.zeros(7, 5))}, tmp_path, TARGETS) == {"head.weight": 0.0}
    own = from_peft(tmp_path, TARGETS)["head.weight"]
    assert own.up.shape == (7, 1) and not own.added().any()


def test_half_precision_both_ways(tmp_path):
    half = replace(HEAD, up=HEAD.up.bfloat16(), down=HEAD.down.bfloat16(), scaling=0.5)
    assert to_peft({"head.weight": half}, tmp_path, TARGETS) == {"head.weight": 0.0}
    own = from_peft(tmp_path, TARGETS)["head.weight"]
    assert own.up.dtype == torch.bfloat16 and own.up.equal(half.up) and own.scaling == 0.5
