"""add_adapter: a weight of any module gets an adapter, and the module stays what it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorun_kernels import (
    Adapted,
    FusedLoRAConv2d,
    FusedLoRALinear,
    adapted_weights,
    add_adapter,
    share_adapter,
    to_plain,
)
from tests.lorun.adapters.architectures import SamePaddingConv2d
from tests.lorun_kernels.adaptable_modules import CASES, Mixer, flat, gradients, trained

FORMS = ["reshape", "factored", "full"]
# Not every kernel of the modules here exists in bfloat16 with the same rounding, so that these are exact.
EXACT = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float64: {"rtol": 1e-10, "atol": 1e-10}}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def assert_close(found, expected, **tolerances):
    for value, definition in zip(flat(found), flat(expected), strict=True):
        torch.testing.assert_close(value, definition, **tolerances)


@every_case
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [False, True])
def test_at_the_start_it_computes_the_same_bits(case, form, training):
    plain, module = case.module().train(training), case.adapted(form=form).train(training)
    for value, expected in zip(flat(module(*case.inputs())), flat(plain(*case.inputs())), strict=True):
        assert torch.equal(value, expected)


@every_case
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", EXACT)
def test_trained_it_equals_a_plain_module_with_the_sum_as_its_weight(case, form, dtype):
    module = case.trained(dtype, form=form, scaling=0.5).eval()
    twin, inputs = case.plain_twin(module, dtype).eval(), case.inputs(dtype)
    assert_close(module(*inputs), twin(*inputs), **EXACT[dtype])
    before = case.module(dtype).eval()(*inputs)
    assert not torch.allclose(flat(module(*inputs))[0], flat(before)[0], rtol=1e-3, atol=1e-3)


@every_case
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_plain_module(case, form):
    module = case.trained(torch.float64, form=form, scaling=0.5).eval()
    inputs = case.inputs(torch.float64)
    twin = case.plain_twin(module, torch.float64).eval()
    loss = sum(value.square().sum() for value in flat(twin(*inputs)))
    (expected,) = torch.autograd.grad(loss, case.owner(twin)._parameters[case.name])
    found = list(gradients(module, inputs).values())
    torch.testing.assert_close(found[0], expected)
    if form == "full":
        torch.testing.assert_close(found[1], 0.5 * expected)
        return
    (weight,) = adapted_weights(module).values()
    matrix = expected.reshape(weight.up.shape[0], weight.down.shape[1])
    torch.testing.assert_close(found[1], 0.5 * matrix @ weight.down.T)
    torch.testing.assert_close(found[2], 0.5 * weight.up.T @ matrix)
    assert found[1].any() and found[2].any()


@every_case
def test_it_is_the_same_object_of_the_same_class(case):
    module = case.module()
    owner = case.owner(module)
    kind, parameters = type(owner), dict(owner.named_parameters(recurse=False))
    attributes = {name for name in owner.__dict__ if not name.startswith("_")}
    owner.note = "mine"
    assert add_adapter(owner, case.name, rank=1) is owner
    assert isinstance(owner, kind) and isinstance(owner, Adapted) and case.owner(module) is owner
    fused = {nn.Conv2d: "FusedLoRAConv2d", nn.Linear: "FusedLoRALinear"} if case.name == "weight" else {}
    assert type(owner).__name__ == fused.get(kind, kind.__name__)
    assert attributes <= owner.__dict__.keys() and owner.note == "mine"
    for name, parameter in parameters.items():
        assert owner._parameters[name] is parameter
    assert repr(module)


@every_case
def test_the_name_of_a_weight_reads_as_what_is_applied(case):
    module = case.trained()
    owner, twin = case.owner(module), case.owner(case.plain_twin(module))
    torch.testing.assert_close(getattr(owner, case.name), twin._parameters[case.name].data)
    base = getattr(owner, f"_base_{case.name}")
    assert base is owner._parameters[case.name] is dict(owner.named_parameters())[case.name]
    assert torch.equal(base, case.owner(case.module())._parameters[case.name])


@every_case
def test_the_state_dict_has_the_names_of_before_and_those_of_the_adapter(case):
    plain, module = case.module(), case.trained()
    state, prefix = module.state_dict(), f"{case.path}." if case.path else ""
    suffix = "" if case.name == "weight" else f"_{case.name}"
    added = {f"{prefix}lora_up{suffix}", f"{prefix}lora_down{suffix}"}
    assert state.keys() == plain.state_dict().keys() | added
    other = case.adapted().eval()
    other.load_state_dict(state)
    assert_close(other(*case.inputs()), module.eval()(*case.inputs()), rtol=0, atol=0)


@every_case
def test_as_plain_modules_it_has_the_class_and_the_names_of_before(case):
    module = case.module().eval()
    kinds, names = [type(m) for m in module.modules()], module.state_dict().keys()
    add_adapter(case.owner(module), case.name, rank=1)
    trained(module)
    with torch.no_grad():  # torch.nn.utils.weight_norm leaves a tensor that deepcopy refuses until this
        module(*case.inputs())
    plain = to_plain(module)
    assert [type(m) for m in plain.modules()] == kinds and plain.state_dict().keys() == names
    assert_close(plain(*case.inputs()), module(*case.inputs()), rtol=1e-5, atol=1e-5)


GROUPED = {
    "Conv2d": (lambda: nn.Conv2d(6, 4, 3, groups=2), (6, 6), (6, 18)),
    "Conv2d of its own": (lambda: SamePaddingConv2d(6, 4, 3, groups=2), (6, 6), (6, 18)),
    "Conv3d": (lambda: nn.Conv3d(4, 6, 3, groups=2), (9, 6), (6, 36)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(6, 4, (3, 2), groups=2), (9, 4), (4, 8)),
}


@pytest.mark.parametrize("make, up, down", GROUPED.values(), ids=GROUPED)
def test_factors_of_a_grouped_convolution_have_the_shapes_of_eq_4(make, up, down):
    layer = add_adapter(make(), rank=2)
    assert (layer.lora_up.shape, layer.lora_down.shape) == (up, down)


def test_several_weights_of_one_module_are_adapted():
    module = nn.GRU(5, 6)
    twin = nn.GRU(5, 6)
    twin.load_state_dict(module.state_dict())
    for name, rank in (("weight_ih_l0", 1), ("weight_hh_l0", 2)):
        add_adapter(module, name, rank=rank, scaling=rank)
    trained(module)
    assert {name: a.rank for name, a in module.adapters().items()} == {"weight_ih_l0": 1, "weight_hh_l0": 2}
    with torch.no_grad():
        twin.weight_ih_l0 += module.lora_up_weight_ih_l0 @ module.lora_down_weight_ih_l0
        twin.weight_hh_l0 += 2 * module.lora_up_weight_hh_l0 @ module.lora_down_weight_hh_l0
    x = torch.randn(4, 2, 5)
    assert_close(module(x), twin(x))
    assert "weight_hh_l0: rank=2, reshape" in repr(module)


def test_two_modules_that_use_one_weight_can_have_one_adapter():
    torch.manual_seed(0)
    first, second = Mixer(), Mixer()
    second.mix = first.mix
    add_adapter(first, "mix", rank=1)
    add_adapter(second, "mix", rank=2)
    share_adapter(second, "mix", first, "mix")
    trained(first)
    image = torch.randn(1, 3, 4, 5)
    assert torch.equal(first(image), second(image)) and second.adapters()["mix"].rank == 1
    assert second.lora_up_mix is first.lora_up_mix
    assert not torch.allclose(first(image), torch.einsum("oc,nchw->nohw", first._base_mix, image))


@pytest.mark.parametrize(
    "make, fused",
    [(lambda: nn.Conv2d(4, 6, 3), FusedLoRAConv2d), (lambda: nn.Linear(4, 6), FusedLoRALinear)],
)
def test_layers_that_have_a_fused_twin_become_it_in_place(make, fused):
    layer = make()
    parameters = list(layer.parameters())
    assert type(add_adapter(layer, rank=2)) is fused
    assert layer.base_weight is parameters[0] and layer.bias is parameters[1] and layer.rank == 2


def test_a_stray_activation_of_a_convolution_is_not_applied():
    layer = nn.Conv2d(3, 4, 3)
    layer.activation, layer.negative_slope = "relu", 7
    image = torch.randn(2, 3, 6, 5)
    expected = layer(image)
    assert (expected < 0).any()
    assert torch.equal(add_adapter(layer)(image), expected)
    assert layer.activation == "relu" and layer.negative_slope == 7


def test_attributes_that_a_fused_layer_would_read_are_left_alone():
    layer = nn.Linear(3, 4)
    layer.rank, layer.form, layer.scaling = 7, "mine", "also mine"
    add_adapter(layer, rank=2)
    assert (layer.rank, layer.form, layer.scaling) == (7, "mine", "also mine")
    rows = torch.randn(2, 3)
    trained(layer)
    torch.testing.assert_close(
        layer(rows), rows @ (layer._base_weight + layer.lora_up @ layer.lora_down).T + layer.bias
    )


def test_a_forward_that_was_set_on_the_object_still_runs():
    layer = nn.Conv2d(3, 3, 3, padding=1)
    layer.forward = lambda x: 2 * nn.Conv2d.forward(layer, x)
    image = torch.randn(1, 3, 6, 5)
    expected = layer(image)
    assert torch.equal(add_adapter(layer)(image), expected)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_hooks_still_run(kind):
    torch.manual_seed(0)
    layer, seen = kind(3, 3, 3, padding=1), []
    layer.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    layer.register_forward_hook(lambda module, args, output: output.clamp(min=0))
    layer.register_full_backward_hook(lambda module, given, taken: seen.append(module))
    image = torch.randn(2, 3, 5, 6)
    expected = layer(image)
    add_adapter(layer)
    assert torch.equal(layer(image), expected) and not (expected < 0).any()
    layer(image).sum().backward()
    assert seen == [layer]


def test_a_module_with_two_names_stays_one():
    conv = nn.ConvTranspose2d(4, 4, 3, padding=1)
    network = nn.Sequential(conv, nn.ReLU(), conv)
    add_adapter(network[0], rank=2)
    assert network[2] is conv is network[0]
    trained(network)
    weight = (conv._base_weight + (conv.lora_up @ conv.lora_down).view(4, 4, 3, 3)).detach()
    x = torch.randn(1, 4, 5, 6)
    expected = nn.functional.conv_transpose2d(x, weight, conv.bias, padding=1).relu()
    expected = nn.functional.conv_transpose2d(expected, weight, conv.bias, padding=1)
    torch.testing.assert_close(network(x), expected)
    assert list(adapted_weights(network)) == ["0.weight"]


def test_other_parameters_stay_as_they_are():
    layer = nn.ConvTranspose2d(3, 4, 3).requires_grad_(False)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    add_adapter(layer)
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["lora_up", "lora_down"]
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in state.items())


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Conv3d])
def test_the_adapter_can_have_another_dtype(kind):
    layer = add_adapter(kind(4, 4, 3).bfloat16(), dtype=torch.float32)
    assert layer.lora_up.dtype == layer.lora_down.dtype == torch.float32
    assert layer._parameters["weight"].dtype == torch.bfloat16
    assert add_adapter(kind(4, 4, 3).double()).lora_up.dtype == torch.float64


def script() -> nn.Module:
    return torch.jit.script(nn.Conv2d(2, 2, 3))


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(3))
        self.codes = nn.Parameter(torch.zeros(3, 3, dtype=torch.int64), requires_grad=False)
        self.none = nn.Parameter(torch.zeros(3, 0))
        self.register_parameter("absent", None)
        self.register_buffer("table", torch.zeros(3, 3))


@pytest.mark.parametrize(
    "make, name, message",
    [
        (Whole, "steps", "two or more dimensions"),
        (Whole, "codes", "floating point"),
        (Whole, "none", "none of them empty"),
        (Whole, "absent", "no Parameter of its own"),
        (Whole, "table", "no Parameter of its own"),
        (Whole, "weight", "no Parameter of its own that is called 'weight'"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), "0.weight", "no Parameter of its own"),
        (lambda: nn.LazyConv2d(4, 3), "weight", "no values yet"),
        (lambda: nn.LazyLinear(4), "weight", "no values yet"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "weight", "no Parameter of its own"),
        (lambda: add_adapter(nn.Conv2d(2, 2, 3)), "weight", "has an adapter already"),
        (lambda: add_adapter(nn.Conv1d(2, 2, 3)), "weight", "has an adapter already"),
        (lambda: FusedLoRALinear(2, 2), "weight", "has an adapter already"),
        pytest.param(script, "weight", "TorchScript", marks=pytest.mark.filterwarnings("ignore")),
    ],
)
def test_what_cannot_be_adapted_is_refused(make, name, message):
    module = make()
    with pytest.raises(TypeError, match=message):
        add_adapter(module, name)


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(4, 6, 3), lambda: nn.Conv3d(4, 6, 3), nn.Module])
@pytest.mark.parametrize(
    "options, message",
    [
        ({"rank": 0}, "rank must be an int between 1 and 4"),
        ({"rank": 5}, "rank must be an int between 1 and 4"),
        ({"rank": 1.5}, "rank must be an int"),
        ({"gamma": 0}, "gamma must be a percentage"),
        ({"form": "low"}, "form must be one of"),
        ({"rank_dropout": 1.0}, "rank_dropout must be a probability"),
        ({"rank_dropout": -0.1}, "rank_dropout must be a probability"),
    ],
)
def test_options_outside_their_range_leave_the_module_as_it_was(make, options, message):
    module = make()
    if type(module) is nn.Module:
        module.register_parameter("weight", nn.Parameter(torch.randn(4, 6)))
    kind, attributes, names = type(module), set(module.__dict__), set(module._parameters)
    with pytest.raises(ValueError, match=message):
        add_adapter(module, **options)
    assert type(module) is kind and set(module._parameters) == names
    assert set(module.__dict__) == attributes
