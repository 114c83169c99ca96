"""Autograd keeps no merged weight: it keeps what the weight was merged of, and merges again."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.multiprocessing.reductions import StorageWeakRef

from lorun_kernels import (
    FusedLoRAConv2d,
    FusedLoRALinear,
    adapted,
    add_adapter,
    keep_no_merged_weight,
    recomputed_weights,
)
from lorun_kernels.recomputed_weights import recomputed_weights as context
from lorun_kernels.recomputed_weights import remember
from tests.lorun_kernels.adaptable_modules import CASES, flat, gradients, trained


@pytest.fixture
def merged(monkeypatch) -> list[StorageWeakRef]:
    """The storages of all weights that are merged from now on in Python, which do not keep them alive."""
    made, merge = [], adapted.merge_parts

    def watched(*args):
        weight = merge(*args)
        made.append(StorageWeakRef(weight.untyped_storage()))
        return weight

    monkeypatch.setattr(adapted, "merge_parts", watched)
    return made


def alive(storages: list[StorageWeakRef]) -> int:
    gc.collect()
    return sum(not storage.expired() for storage in storages)


READ_IN_PYTHON = (
    *("Conv1d", "Conv3d grouped", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Bilinear"),
    *("attention in", "attention keys", "standardised", "padding of TensorFlow", "einsum", "dictionary"),
    *("GRU", "LSTM"),
)


@pytest.mark.parametrize("form", ["reshape", "full"])
@pytest.mark.parametrize("case", [CASES[name] for name in READ_IN_PYTHON], ids=READ_IN_PYTHON)
def test_no_merged_weight_outlives_the_call(case, form, merged):
    module = case.trained(form=form, scaling=0.5)
    inputs = [x.requires_grad_() for x in case.inputs()]
    output = module(*inputs)
    assert merged and alive(merged) == 0
    flat(output)[0].sum().backward()
    assert case.owner(module)._parameters[case.name].grad.any()


@pytest.mark.parametrize("autocast", [False, True])
def test_depthwise_layers_keep_images_only(autocast, merged):
    torch.manual_seed(0)
    base = nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False)
    layers = [trained(add_adapter(nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False))) for _ in range(3)]
    for layer in layers:
        layer.base_weight.data = base.weight.data
    own = {p.untyped_storage().data_ptr() for layer in layers for p in layer.parameters()}
    kept: list[Tensor] = []
    image = torch.randn(1, 6, 7, 9)
    images = [image]
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        for layer in layers:
            images.append(layer(images[-1]))
    others = [t for t in kept if t.untyped_storage().data_ptr() not in own]
    assert layers[0].lora_delta is not None and len(merged) == 3 and alive(merged) == 0
    assert len(others) >= 3 and {tuple(t.shape) for t in others} == {tuple(image.shape)}


@pytest.mark.parametrize("form", ["reshape", "full"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_keep_rows_only_under_autocast(form, bias, merged):
    torch.manual_seed(0)
    layer = add_adapter(nn.Linear(7, 5, bias).bfloat16(), rank=2, form=form, dtype=torch.float32).float()
    rows, kept = torch.randn(3, 7, requires_grad=True), []
    for tensor in layer.adapted_weights()[0].tensors:
        nn.init.normal_(tensor)
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        torch.autocast("cpu", torch.bfloat16),
    ):
        output = layer(rows)
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    others = [tuple(t.shape) for t in kept if t.untyped_storage().data_ptr() not in own]
    assert others == [tuple(rows.shape)] and output.dtype == torch.bfloat16
    (found,) = torch.autograd.grad(output.float().sum(), rows)
    expected = layer.weight.detach().bfloat16().sum(0).bfloat16().float()
    torch.testing.assert_close(found, expected.expand(3, 7), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("groups", [1, 6])
def test_an_image_in_another_dtype_is_refused_outside_of_autocast(groups):
    layer = FusedLoRAConv2d(6, 6, 3, groups=groups)
    with pytest.raises((RuntimeError, TypeError)):
        layer(torch.randn(1, 6, 5, 5).bfloat16())
    with pytest.raises((RuntimeError, TypeError)):
        FusedLoRALinear(6, 6, form="full")(torch.randn(1, 6).bfloat16())


def test_without_the_context_a_merged_weight_is_kept(merged):
    layer = CASES["ConvTranspose2d"].trained()
    image = CASES["ConvTranspose2d"].inputs()[0].requires_grad_()
    output = F.conv_transpose2d(image, layer.weight)
    assert alive(merged) == 1
    del output
    assert alive(merged) == 0


def test_a_parent_that_reads_the_weight_of_a_layer_can_keep_none(merged):
    class Transposing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(3, 4, 3)

        def forward(self, x):
            return F.conv_transpose1d(self.conv(x).tanh(), self.conv.weight)

    torch.manual_seed(0)
    module, image = Transposing(), torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    trained_in(add_adapter(module.double().conv, rank=2))
    expected = gradients(module, (image,))
    merged.clear()
    output = module(image)
    assert alive(merged) == 1
    keep_no_merged_weight(module)
    del output
    merged.clear()
    output = module(image)
    assert len(merged) == 2 and alive(merged) == 0 and isinstance(module, Transposing)
    assert output.requires_grad
    for found, value in zip(gradients(module, (image,)).values(), expected.values(), strict=True):
        torch.testing.assert_close(found, value)


def trained_in(layer: nn.Module) -> nn.Module:
    nn.init.normal_(layer.lora_up)
    return layer


@pytest.mark.parametrize("name", ["base", "up"])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Linear])
def test_a_change_in_place_before_backward_is_an_error(kind, name):
    layer = kind(4, 3, 1) if kind is nn.Conv1d else kind(4, 3)
    add_adapter(layer, rank=1, form="reshape")
    layer = trained_in(layer)
    image = torch.randn(2, 4, 4, requires_grad=True)
    output = layer(image)
    with torch.no_grad():
        {"base": layer._parameters["weight"], "up": layer.lora_up}[name].add_(1)
    with pytest.raises(RuntimeError, match="changed in place|modified by an inplace operation"):
        output.sum().backward()


def test_the_error_names_what_to_do():
    layer = CASES["ConvTranspose2d"].trained()
    output = layer(CASES["ConvTranspose2d"].inputs()[0].requires_grad_())
    with torch.no_grad():
        layer.lora_down.mul_(2)
    with pytest.raises(RuntimeError, match="call backward\\(\\) before the optimiser's step"):
        output.sum().backward()


def test_backward_twice_merges_twice(merged):
    layer = CASES["ConvTranspose2d"].trained()
    image = CASES["ConvTranspose2d"].inputs()[0].requires_grad_()
    loss = layer(image).square().sum()
    first = torch.autograd.grad(loss, [image, layer.lora_up], retain_graph=True)
    second = torch.autograd.grad(loss, [image, layer.lora_up])
    assert len(merged) == 3 and all(map(torch.equal, first, second))


def test_gradients_of_gradients_are_right():
    layer = CASES["Conv1d"].trained(torch.float64)
    image = CASES["Conv1d"].inputs(torch.float64)[0]

    def twice(image, up):
        return functional_call(layer, {"lora_up": up}, (image,)).tanh()

    inputs = (image[:1, :, :4].clone().requires_grad_(), layer.lora_up.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(twice, inputs)
    assert torch.autograd.gradgradcheck(twice, inputs)


def test_outer_hooks_see_the_other_tensors_and_no_merged_weight(merged):
    case = CASES["ConvTranspose2d"]
    layer, image = case.trained(), case.inputs()[0].requires_grad_()
    expected = gradients(layer, (image,))
    seen: list[Tensor] = []

    def pack(tensor):
        seen.append(tensor)
        return tensor.double()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.float()):
        output = layer(image).square()
    shapes = [tuple(t.shape) for t in seen]
    assert tuple(image.shape) in shapes and tuple(layer._parameters["weight"].shape) not in shapes
    assert tuple(output.shape) in shapes  # of the square, outside of the layer
    output.sum().backward()
    for found, value in zip(
        (layer.lora_up.grad, image.grad), (expected["weight.1"], expected["input 0"]), strict=True
    ):
        torch.testing.assert_close(found, value)


def test_saving_on_the_cpu_works_around_it():
    case = CASES["dictionary"]
    module, inputs = case.trained(), case.inputs()
    expected = gradients(module, inputs)
    with torch.autograd.graph.save_on_cpu():
        found = gradients(module, inputs)
    for value, definition in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(value, definition)


def state() -> tuple[bool, dict]:
    return recomputed_weights._state.active, recomputed_weights._state.known


def test_it_does_nothing_without_gradients_and_in_torch_func():
    seen = []

    class Looking(nn.ConvTranspose1d):
        def forward(self, x):
            seen.append(state()[0])
            return super().forward(x)

    layer, image = add_adapter(Looking(3, 4, 3)), torch.randn(2, 3, 5)
    with torch.no_grad():
        layer(image)
    grad(lambda x: layer(x).sum())(image)
    with torch.inference_mode():
        layer(image)
    assert seen == [False, False, False]
    layer(image)
    assert seen[3:] == [True] and state() == (False, {})


def test_an_error_inside_leaves_nothing_behind():
    class Failing(nn.ConvTranspose1d):
        def forward(self, x):
            super().forward(x)
            raise ValueError("from inside")

    layer, image = add_adapter(Failing(3, 4, 3)), torch.randn(2, 3, 5)
    before = torch._C._autograd._top_saved_tensors_default_hooks(True)
    with pytest.raises(ValueError, match="from inside"):
        layer(image)
    assert state() == (False, {}) and before is None
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def test_a_weight_that_was_changed_after_it_was_merged_is_kept_as_it_is():
    base = torch.randn(3, 4, requires_grad=True)
    rows = torch.randn(2, 4, requires_grad=True)
    with context():
        weight = base * 1.0
        remember(weight, (base,), lambda: base * 1.0)
        weight.mul_(2)
        output = F.linear(rows, weight)
    output.sum().backward()
    torch.testing.assert_close(rows.grad, (2 * base).sum(0).expand(2, 4))


def test_a_tensor_that_lies_where_a_merged_weight_lay_is_kept_as_it_is():
    base = torch.randn(64, 64, requires_grad=True)
    addresses, outputs, rows = set(), [], torch.randn(2, 64, requires_grad=True)
    with context():
        for _ in range(20):
            weight = base * 1.0
            remember(weight, (base,), lambda: base * 1.0)
            addresses.add(weight.untyped_storage()._cdata)
            del weight
            other = torch.randn(64, 64)
            if other.untyped_storage()._cdata in addresses:
                outputs.append((F.linear(rows, other), other))
    assert outputs
    for output, other in outputs:
        (found,) = torch.autograd.grad(output.sum(), rows)
        torch.testing.assert_close(found, other.sum(0).expand(2, 64))


def test_another_thread_is_not_inside():
    found = []
    with context():
        thread = threading.Thread(target=lambda: found.append(state()[0]))
        thread.start()
        thread.join(60)
        assert state()[0]
    assert found == [False]
