"""loralib's layers and LyCORIS's files against what their own code or formulas compute; PEFT's refusals."""

import copy
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lorun.adapters import exchange
from lorun.adapters.adapter_set import LayerAdapter
from lorun.adapters.exchange import ExchangeError, Target, from_locon, from_loralib, scaling_of, to_loralib
from lorun.adapters.peft_files import from_peft_state
from lorun.errors import ArgumentError

ALPHA = 3.0
CONV = Target((6, 4, 3, 3))
TARGETS = {
    "stages.0.conv.weight": CONV,
    "stages.0.grouped.weight": Target((6, 2, 3, 3), groups=2),
    "stages.0.point.weight": Target((6, 4, 1, 1)),
    "head.weight": Target((7, 5)),
    "square.weight": Target((5, 5)),
    "tall.weight": Target((6, 4, 3, 1)),
    "line.weight": Target((6, 4, 3)),
}


@pytest.fixture
def loralib():
    return pytest.importorskip("loralib", reason="loralib is not installed: pip install '.[test]'")


@pytest.fixture
def their_model(loralib):
    """Layers of loralib with random factors, by the names that their weights have in TARGETS."""
    stage = nn.ModuleDict(
        {
            "conv": loralib.Conv2d(4, 6, 3, r=2, lora_alpha=ALPHA),
            "grouped": loralib.Conv2d(4, 6, 3, r=3, lora_alpha=ALPHA, groups=2, dilation=2),
            "point": loralib.Conv2d(4, 6, 1, r=4, lora_alpha=ALPHA),
        }
    )
    head = loralib.Linear(5, 7, r=2, lora_alpha=ALPHA)
    # In float64, so that what merging adds is not rounded at the magnitude of the weight.
    model = nn.ModuleDict({"stages": nn.ModuleList([stage]), "head": head}).double()
    randomize(model)
    return model


def randomize(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()


def weights(model):
    """The weights that loralib adapts, by our names for them."""
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    return {f"{name}.weight": getattr(layer, "conv", layer).weight.detach() for name, layer in layers.items()}


def merged(model):
    """What loralib's own merging adds to each weight."""
    after = copy.deepcopy(model)
    after.eval()
    return {name: weight - weights(model)[name] for name, weight in weights(after).items()}


def adapter(form, target, rank, scaling=0.7, dtype=torch.float32):
    """Random factors whose shapes are written out here, not taken from the code under test."""
    shape, groups = target.shape, target.groups
    rows, columns, inner = shape[0], math.prod(shape[1:]), 1
    if form == "reshape" and len(shape) == 4:
        rows, columns, inner = shape[0] // groups * shape[2], shape[1] * groups * shape[3], min(shape[2:])
    up, down = torch.randn(rows, rank * inner, dtype=dtype), torch.randn(rank * inner, columns, dtype=dtype)
    return LayerAdapter(shape, form, up=up, down=down, scaling=scaling, groups=groups)


def test_scaling():
    assert scaling_of(4, 8) == 2 and scaling_of(4, 8, rslora=True) == 4 and scaling_of(1, -0.5) == -0.5
    for rank in (0, -3):
        with pytest.raises(ArgumentError, match=f"rank: expected at least 1, got {rank}"):
            scaling_of(rank, 1)
    for alpha in (math.nan, math.inf):
        with pytest.raises(ArgumentError, match=f"alpha: expected a finite number, got {alpha}"):
            scaling_of(1, alpha)


@pytest.mark.parametrize("whole", [True, False], ids=["state_dict", "lora_state_dict"])
def test_from_loralib_adds_what_loralib_merges(their_model, loralib, whole, relative_error):
    state = their_model.state_dict() if whole else loralib.lora_state_dict(their_model)
    ours = from_loralib(state, TARGETS, alpha=ALPHA)
    expected = merged(their_model)
    assert set(ours) == set(expected) and len(ours) == 4
    for name, adapter_ in ours.items():
        assert adapter_.form == "reshape" and adapter_.shape == tuple(expected[name].shape)
        assert relative_error(adapter_.added(), expected[name]) < 1e-6
    assert ours["stages.0.grouped.weight"].groups == 2
    assert ours["stages.0.grouped.weight"].scaling == ALPHA / 3
    before = ours["head.weight"].added()
    randomize(their_model)
    assert ours["head.weight"].added().equal(before)


def test_to_loralib_loads_into_its_layers(their_model, relative_error):
    ours = {
        "stages.0.conv.weight": adapter("reshape", CONV, 2),
        "stages.0.grouped.weight": adapter("reshape", TARGETS["stages.0.grouped.weight"], 3, scaling=-2.5),
        "stages.0.point.weight": adapter("factored", TARGETS["stages.0.point.weight"], 4, scaling=0.0),
        "head.weight": adapter("factored", TARGETS["head.weight"], 2, scaling=ALPHA / 2),
    }
    state = to_loralib(ours, alpha=ALPHA)
    assert len(state) == 8
    result = their_model.load_state_dict(state, strict=False)
    assert not result.unexpected_keys and not [key for key in result.missing_keys if "lora_" in key]
    for name, delta in merged(their_model).items():
        expected = ours[name].scaling * (ours[name].up.double() @ ours[name].down.double()).view(delta.shape)
        assert (delta - expected).abs().max() <= 1e-6 * (1e-9 + expected.abs().max())
    # A scaling that is loralib's own leaves the factors as they are.
    assert state["head.lora_B"].equal(ours["head.weight"].up)
    back = from_loralib(state, TARGETS, alpha=ALPHA)
    for name in ours:
        assert relative_error(back[name].added().double(), ours[name].added().double()) < 1e-6


def test_a_prefix_of_loralib_s_names(their_model):
    state = {f"module.{name}": tensor for name, tensor in their_model.state_dict().items()}
    ours = from_loralib(state, TARGETS, alpha=ALPHA, prefix="module.")
    assert set(ours) == {name for name in TARGETS if name.startswith(("stages", "head"))}
    assert set(to_loralib(ours, ALPHA, prefix="module.")) == {name for name in state if "lora_" in name}
    with pytest.raises(ExchangeError, match="expected a name that begins with 'other.'"):
        from_loralib(state, TARGETS, prefix="other.")
    root = from_loralib({"lora_A": torch.ones(1, 5), "lora_B": torch.ones(7, 1)}, {"weight": Target((7, 5))})
    assert set(root) == {"weight"} and set(to_loralib(root)) == {"lora_A", "lora_B"}


def test_other_layers_of_loralib_are_refused(loralib):
    def state_of(layer):
        return {f"head.{name}": tensor for name, tensor in loralib.lora_state_dict(layer).items()}

    for enabled in ([True, False], [True, True]):
        layer = loralib.MergedLinear(5, 8, r=2, enable_lora=enabled)
        with pytest.raises(ExchangeError, match="head.weight: .*MergedLinear's, call eval"):
            from_loralib(state_of(layer), {"head.weight": Target((8, 5))})
    for layer in (loralib.Embedding(9, 4, r=2), loralib.Linear(9, 4, r=2, fan_in_fan_out=True)):
        with pytest.raises(
            ExchangeError, match="head.weight: .*give lora_A.T as lora_B and lora_B.T as lora_A"
        ):
            from_loralib(state_of(layer), {"head.weight": Target(tuple(layer.weight.shape))})


def test_the_advice_for_transposed_factors_is_right(loralib, relative_error):
    layer = loralib.Embedding(9, 4, r=2).double()
    randomize(layer)
    before = layer.weight.detach().clone()
    state = {"e.lora_A": layer.lora_B.T, "e.lora_B": layer.lora_A.T}
    ours = from_loralib(state, {"e.weight": Target((9, 4))})
    layer.eval()
    assert relative_error(ours["e.weight"].added(), layer.weight.detach() - before) < 1e-6


A, B = "stages.0.conv.lora_A", "stages.0.conv.lora_B"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({A: torch.ones(6, 12)}, "stages.0.conv: lacks 'lora_B'"),
        ({A: torch.ones(6, 11), B: torch.ones(18, 6)}, "stages.0.conv.weight: expected factors of shapes"),
        ({A: torch.ones(5, 12), B: torch.ones(18, 5)}, "stages.0.conv.weight: expected factors of shapes"),
        ({A: torch.ones(6, 12), B: torch.ones(18, 3)}, "stages.0.conv.weight: expected factors of shapes"),
        ({A: torch.ones(12), B: torch.ones(18)}, "stages.0.conv.weight: expected factors of shapes"),
        ({A: torch.ones(15, 12), B: torch.ones(18, 15)}, "conv.weight: expected a rank from 1 to 4, got 5"),
        ({A: torch.ones(0, 12), B: torch.ones(18, 0)}, "conv.weight: expected a rank from 1 to 4, got 0"),
        ({A: torch.ones(6, 12), B: torch.full((18, 6), torch.nan)}, "conv.weight: .* NaN or Inf"),
        ({A: torch.full((6, 12), torch.inf), B: torch.ones(18, 6)}, "conv.weight: .* NaN or Inf"),
        ({A: torch.ones(6, 12, dtype=torch.int8), B: torch.ones(18, 6)}, "'torch.float32', 'torch.int8'"),
        ({A: torch.ones(6, 12).half(), B: torch.ones(18, 6)}, "one floating-point type"),
        ({"x.lora_A": torch.ones(2, 5), "x.lora_B": torch.ones(7, 2)}, "x: no layer .*'stages.0.conv"),
        ({"tall.lora_A": torch.ones(2, 4), "tall.lora_B": torch.ones(18, 2)}, "expected a square .* 3x1"),
        ({"line.lora_A": torch.ones(3, 12), "line.lora_B": torch.ones(18, 3)}, "line.weight: .*Conv2d, got"),
        ({A: torch.ones(6, 12), B: torch.ones(18, 6), "n.bias": torch.ones(1)}, "n.bias: a trained bias"),
    ],
)  # fmt: skip
def test_states_that_are_refused(state, words):
    with pytest.raises(ExchangeError, match=words):
        from_loralib(state, TARGETS)


@pytest.mark.parametrize(
    ("name", "adapter_", "words"),
    [
        ("conv.weight", adapter("factored", CONV, 2), "conv.weight: expected form \"reshape\""),
        ("conv.weight", LayerAdapter((2, 2), "full", delta=torch.ones(2, 2)), 'conv.weight: form "full"'),
        ("tall.weight", adapter("reshape", Target((6, 4, 3, 1)), 1), "tall.weight: expected a square kernel"),
        ("line.weight", adapter("factored", Target((6, 4, 3)), 1), "line.weight: loralib has no layer"),
        ("position", adapter("factored", Target((6, 4)), 1), "position: expected the name of"),
        ("conv.weight", LayerAdapter(CONV.shape, "reshape", torch.ones(18, 6) / 0, torch.ones(6, 12)), "Inf"),
        ("conv.weight", adapter("reshape", CONV, 2, scaling=math.inf), "conv.weight: its adapter holds NaN"),
    ],
)  # fmt: skip
def test_adapters_that_loralib_has_no_layer_for(name, adapter_, words):
    with pytest.raises(ExchangeError, match=words):
        to_loralib({name: adapter_})
    with pytest.raises(ArgumentError, match="alpha: expected another number than 0"):
        to_loralib({}, alpha=0)


def locon_file(path, layer="lora_unet_stages_0_conv", **tensors):
    names = {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight"}
    save_file({f"{layer}.{names.get(key, key)}": tensor for key, tensor in tensors.items()}, path)
    return path


def test_locon_of_a_convolution(tmp_path, relative_error):
    up, down = torch.randn(6, 2, 1, 1), torch.randn(2, 4, 3, 3)
    path = locon_file(tmp_path / "a.safetensors", up=up, down=down, alpha=torch.tensor(0.5))
    ours = from_locon(path, TARGETS)["stages.0.conv.weight"]
    # The two convolutions that LyCORIS's layer is, on an image.
    image = torch.randn(1, 4, 8, 8)
    both = nn.functional.conv2d(nn.functional.conv2d(image, down, padding=1), up) * (0.5 / 2)
    assert ours.form == "factored" and ours.scaling == 0.25
    assert relative_error(nn.functional.conv2d(image, ours.added(), padding=1), both) < 1e-5
    path = locon_file(tmp_path / "b.safetensors", up=up, down=down)
    assert from_locon(path, TARGETS)["stages.0.conv.weight"].scaling == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_locon_with_a_middle(tmp_path, relative_error, dtype):
    up, mid, down = torch.randn(6, 3, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(3, 4, 1, 1)
    parts = {"up": up.to(dtype), "mid": mid.to(dtype), "down": down.to(dtype)}
    path = locon_file(tmp_path / "a.safetensors", **parts, alpha=torch.tensor(6.0))
    ours = from_locon(path, TARGETS)["stages.0.conv.weight"]
    image = torch.randn(1, 4, 8, 8)
    hidden = nn.functional.conv2d(nn.functional.conv2d(image, parts["down"].float()), parts["mid"].float())
    expected = nn.functional.conv2d(hidden, parts["up"].float()) * 2
    assert ours.up.shape == (6, 3) and ours.down.shape == (3, 36) and ours.scaling == 2
    assert relative_error(nn.functional.conv2d(image, ours.added().float()), expected) < 1e-5


def test_locon_of_a_linear_layer_and_of_a_1x1_convolution(tmp_path, relative_error):
    up, down = torch.randn(7, 2), torch.randn(2, 5)
    for shaped in (lambda t: t, lambda t: t[:, :, None, None]):
        path = locon_file(tmp_path / "a.safetensors", "lora_unet_head", up=shaped(up), down=shaped(down))
        ours = from_locon(path, TARGETS)["head.weight"]
        assert relative_error(ours.added(), up @ down) < 1e-6 and ours.shape == (7, 5)
    up, down = torch.randn(6, 2), torch.randn(2, 4)
    path = locon_file(tmp_path / "a.safetensors", "te_stages_0_point", up=up, down=down)
    ours = from_locon(path, TARGETS, prefix="te_")["stages.0.point.weight"]
    assert relative_error(ours.added()[:, :, 0, 0], up @ down) < 1e-6


def test_locon_s_full_weight_and_a_state_instead_of_a_file():
    delta, key = torch.randn(6, 4, 3, 3), "lora_unet_stages_0_conv"
    ours = from_locon({f"{key}.diff": delta}, TARGETS)["stages.0.conv.weight"]
    assert ours.form == "full" and ours.added().equal(delta) and ours.delta is not delta
    with pytest.raises(ExchangeError, match="conv.weight: expected 'diff' alone.*'alpha', 'diff'"):
        from_locon({f"{key}.diff": delta, f"{key}.alpha": torch.tensor(1.0)}, TARGETS)
    with pytest.raises(ExchangeError, match="conv.weight: .*NaN or Inf"):
        from_locon({f"{key}.diff": delta / 0}, TARGETS)


def test_locon_s_names():
    state = {"up": torch.ones(7, 1), "down": torch.ones(1, 5)}
    state = {f"lora_unet_a_b.lora_{one}.weight": tensor for one, tensor in state.items()}
    assert list(from_locon(state, {"a.b.weight": Target((7, 5)), "a.b.bias": Target((7,))})) == ["a.b.weight"]
    with pytest.raises(ExchangeError, match="lora_unet_a_b: could be 'a.b.weight', 'a_b.weight'"):
        from_locon(state, {"a.b.weight": Target((7, 5)), "a_b.weight": Target((7, 5))})
    with pytest.raises(ExchangeError, match="lora_unet_a_b: no layer .*'lora_unet_stages_0_conv', .*check"):
        from_locon(state, TARGETS)
    with pytest.raises(ExchangeError, match="the targets are empty"):
        from_locon(state, {})
    for hostile in ("../x", "/etc/passwd", "lora_unet_../x", "", "lora_unet_"):
        with pytest.raises(ExchangeError, match="no layer of the model"):
            from_locon({f"{hostile}.lora_up.weight": torch.ones(7, 1)}, TARGETS)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("dora_scale", "DoRA"), ("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("oft_blocks", "OFT"),
        ("diff_b", "a trained bias"), ("on_input", "IA3"), ("anything", "unknown"),
    ],
)  # fmt: skip
def test_other_methods_of_lycoris_are_refused_by_name(tmp_path, part, words):
    tensors = {"up": torch.ones(6, 2, 1, 1), "down": torch.ones(2, 4, 3, 3), part: torch.ones(1)}
    path = locon_file(tmp_path / "a.safetensors", **tensors)
    with pytest.raises(ExchangeError, match=rf"stages.0.conv.weight: holds '{part}' \({words}\)"):
        from_locon(path, TARGETS)


UP, DOWN = torch.ones(6, 2, 1, 1), torch.ones(2, 4, 3, 3)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"up": UP}, "lacks 'lora_down.weight'"),
        ({"up": UP, "down": torch.ones(2, 5, 3, 3)}, "expected lora_up"),
        ({"up": UP, "down": torch.ones(2, 4, 3)}, "expected lora_up"),
        ({"up": torch.ones(6), "down": DOWN}, "expected lora_up"),
        ({"up": torch.ones(6, 2, 3, 3), "down": DOWN}, "expected lora_up"),
        ({"up": torch.ones(5, 2, 1, 1), "down": DOWN}, "expected factors of shapes"),
        ({"up": torch.ones(6, 7, 1, 1), "down": torch.ones(7, 4, 3, 3)}, "a rank from 1 to 6, got 7"),
        ({"up": UP, "down": DOWN * torch.nan}, "NaN or Inf"),
        ({"up": UP, "down": DOWN, "alpha": torch.tensor(torch.nan)}, "expected one finite alpha"),
        ({"up": UP, "down": DOWN, "alpha": torch.tensor(0.0)}, "expected one finite alpha other than 0"),
        ({"up": UP, "down": DOWN, "alpha": torch.ones(2)}, "expected one finite alpha"),
        ({"up": UP, "down": DOWN, "mid": torch.ones(2, 2, 3, 3)}, "expected lora_mid"),
        ({"up": UP, "down": torch.ones(2, 4, 1, 1), "mid": torch.ones(2, 3, 3, 3)}, "expected lora_mid"),
        ({"up": UP, "down": torch.ones(2, 4, 1, 1), "mid": torch.ones(2, 2, 5, 5)}, "expected lora_up"),
        ({"up": UP, "down": torch.ones(2, 4, 1, 1), "mid": torch.ones(2, 2, 3, 3) / 0}, "NaN or Inf"),
        ({"up": UP.int(), "down": torch.ones(2, 4, 1, 1), "mid": torch.ones(2, 2, 3, 3)}, "one floating"),
    ],
)  # fmt: skip
def test_locon_files_that_are_refused(tmp_path, tensors, words):
    path = locon_file(tmp_path / "a.safetensors", **tensors)
    with pytest.raises(ExchangeError, match=f"stages.0.conv.weight: .*{words}"):
        from_locon(path, TARGETS)


def test_files_that_are_damaged_or_no_safetensors(tmp_path):
    path = locon_file(tmp_path / "a.safetensors", up=UP, down=DOWN)
    content = path.read_bytes()
    for damaged in (content[:-5], content[:30], b"", b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(ExchangeError, match="a.safetensors: damaged, or not a safetensors file"):
            from_locon(path, TARGETS)
    torch.save({"lora_unet_stages_0_conv.lora_up.weight": UP}, path)
    with pytest.raises(ExchangeError, match="not a safetensors file"):
        exchange.read_safetensors(path)
    with pytest.raises(FileNotFoundError, match="b.safetensors: no such file of adapters"):
        from_locon(tmp_path / "b.safetensors", TARGETS)


PEFT_A, PEFT_B = "base_model.model.head.lora_A.weight", "base_model.model.head.lora_B.weight"
PEFT_STATE = {PEFT_A: torch.ones(2, 5), PEFT_B: torch.ones(7, 2)}
PEFT_CONFIG = {"r": 2, "lora_alpha": 4}


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("r", None, "head: expected a whole number as r, got None"),
        ("r", 2.0, "head: expected a whole number as r, got 2.0"),
        ("r", 3, r"head: expected rank 3 as in PEFT's config, got lora_A \(2, 5\)"),
        ("lora_alpha", None, "head: expected a finite number as lora_alpha, got None"),
        ("lora_alpha", math.nan, "head: expected a finite number as lora_alpha, got nan"),
        ("lora_alpha", 10**400, "head: expected a finite number as lora_alpha"),
        ("rank_pattern", {"head": 4}, "head: expected rank 4"),
        ("rank_pattern", ["head"], "rank_pattern: expected a JSON object"),
        ("alpha_pattern", {"head": "x"}, "head: expected a finite number as lora_alpha, got 'x'"),
        ("alpha_pattern", {"(head": 1}, r"alpha_pattern: '\(head' is no pattern"),
        ("alpha_pattern", {"(a+)+b": 1}, "alpha_pattern: .* repeats too much"),
        ("alpha_pattern", {".*.*.*b": 1}, "alpha_pattern: .* repeats too much"),
        ("peft_type", "LOHA", "peft_type: expected 'LORA' in PEFT's config, got 'LOHA'"),
        ("fan_in_fan_out", True, "fan_in_fan_out: expected None"),
        ("init_lora_weights", "mica", "init_lora_weights: expected True"),
    ],
)  # fmt: skip
def test_configs_of_peft_that_are_refused(setting, value, words):
    with pytest.raises(ExchangeError, match=words):
        from_peft_state(PEFT_STATE, PEFT_CONFIG | {setting: value}, TARGETS)


def test_the_first_pattern_counts():
    config = PEFT_CONFIG | {"alpha_pattern": {"ead": 1, "he.d": 6, "head": 8}, "rank_pattern": None}
    assert from_peft_state(PEFT_STATE, config, TARGETS)["head.weight"].scaling == 3


@pytest.mark.parametrize(
    ("layer", "down", "up", "words"),
    [
        ("head", (2, 5), None, "head: lacks 'lora_B.weight'"),
        ("head", (2, 6), (7, 2), "head: expected lora_A"),
        ("head", (2,), (7, 2), "head: expected lora_A"),
        ("head", (2, 5), (7, 2, 1, 1), "head: expected lora_A"),
        ("head", (2, 5), (6, 2), "head.weight: expected factors of shapes"),
        ("head", (2, 5), (7, 3), "head.weight: expected factors of shapes"),
        ("head", (6, 5), (7, 6), "head.weight: expected a rank from 1 to 5, got 6"),
        ("stages.0.conv", (2, 4, 5, 5), (6, 2, 1, 1), "conv: expected lora_A"),
        ("stages.0.conv", (2, 4, 3, 3), (6, 2, 3, 3), "conv: expected lora_A"),
        ("line", (2, 4, 3), (6, 2, 1), "line.weight: expected a weight of an nn.Linear or nn.Conv2d"),
        ("../x", (2, 5), (7, 2), r"\.\./x: no layer of the model"),
    ],
)  # fmt: skip
def test_states_of_peft_that_are_refused(layer, down, up, words):
    state = {"A": torch.ones(down)} | ({"B": torch.ones(up)} if up else {})
    state = {f"base_model.model.{layer}.lora_{one}.weight": tensor for one, tensor in state.items()}
    with pytest.raises(ExchangeError, match=words):
        from_peft_state(state, {"r": down[0], "lora_alpha": 1}, TARGETS)


def test_values_of_peft_that_are_refused():
    for down, words in ((PEFT_STATE[PEFT_A] / 0, "holds NaN"), (PEFT_STATE[PEFT_A].int(), "one floating")):
        with pytest.raises(ExchangeError, match=f"head.weight: .*{words}"):
            from_peft_state(PEFT_STATE | {PEFT_A: down}, PEFT_CONFIG, TARGETS)
