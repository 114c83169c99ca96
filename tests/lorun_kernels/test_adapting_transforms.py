"""Adapted modules under what torch does to modules: copies, compile, vmap, checkpoints, threads, autocast."""

from __future__ import annotations

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from lorun_kernels import adapted_weights, add_adapter
from tests.lorun_kernels.adaptable_modules import CASES, Case, flat, gradients, trained

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def some_cases(*names: str):
    return pytest.mark.parametrize("case", [CASES[name] for name in names], ids=names)


def assert_same(found, expected):
    for value, definition in zip(flat(found), flat(expected), strict=True):
        assert torch.equal(value, definition)


def assert_close(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def as_file(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "file": as_file}


@every_case
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_computes_the_same_and_is_independent(case, how):
    try:
        with torch.no_grad():  # what torch.nn.utils.weight_norm leaves at first has no copies
            plain = case.module()
            plain(*case.inputs())
            COPIES[how](plain)
    except RuntimeError as error:
        assert "parametriz" in str(error)
        pytest.skip(f"torch has no copies of the module itself: {error}")
    module, inputs = case.trained(scaling=0.5).eval(), case.inputs()
    with torch.no_grad():
        expected = module(*inputs)
    twin = COPIES[how](module)
    assert [type(m).__name__ for m in twin.modules()] == [type(m).__name__ for m in module.modules()]
    assert case.owner(twin).adapters() == case.owner(module).adapters()
    with torch.no_grad():
        assert_same(twin(*inputs), expected)
        for parameter in twin.parameters():
            parameter.add_(1)
        assert_same(module(*inputs), expected)
    assert all(value.any() for value in list(gradients(twin, inputs).values())[:3])


def test_copies_have_the_class_that_the_original_has():
    layer = add_adapter(nn.ConvTranspose2d(3, 4, 3))
    assert type(copy.deepcopy(layer)) is type(pickle.loads(pickle.dumps(layer))) is type(layer)


COMPILED = (
    *("Conv1d", "Conv2d", "ConvTranspose2d grouped", "Linear", "attention out", "attention in"),
    *("weight_norm", "standardised", "dictionary", "ParameterList"),
)


@some_cases(*COMPILED)
def test_compiled_whole_it_computes_the_same_with_the_same_gradients(case):
    torch.compiler.reset()
    module, inputs = case.trained(scaling=0.5).eval(), case.inputs()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(gradients(compiled, inputs), gradients(module, inputs))
    torch.testing.assert_close(compiled(*inputs), module(*inputs))
    trained_further(module)
    torch.testing.assert_close(compiled(*inputs), module(*inputs))


def trained_further(module: nn.Module) -> None:
    with torch.no_grad():
        for weight in adapted_weights(module).values():
            for tensor in weight.tensors:
                tensor.mul_(1.5)


def test_compiled_by_inductor_it_computes_the_same():
    torch.compiler.reset()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(3, 4, 3), nn.GELU(), nn.ConvTranspose1d(4, 2, 3))
    for layer in (network[0], network[2]):
        add_adapter(layer, rank=1)
    trained(network)
    inputs = (torch.randn(2, 3, 9),)
    compiled = torch.compile(network, fullgraph=True)
    assert_close(gradients(compiled, inputs), gradients(network, inputs))


@some_cases(
    "Conv1d", "Conv2d grouped", "ConvTranspose3d", "Linear", "standardised", "einsum", "ParameterDict"
)
def test_vmap_gives_what_a_loop_does(case):
    module = case.trained()
    inputs = torch.stack([case.inputs()[0] * factor for factor in (1, -2, 0.5)])
    with torch.no_grad():
        expected = torch.stack([module(x) for x in inputs])
        torch.testing.assert_close(vmap(module)(inputs), expected, rtol=1e-4, atol=1e-5)


@some_cases("Conv1d", "ConvTranspose2d", "Bilinear", "encoder layer", "weight_norm", "positions", "GRU")
def test_functional_call_takes_base_and_adapter(case):
    module = case.trained().eval()
    (weight,) = adapted_weights(module).values()
    prefix = f"{case.path}." if case.path else ""
    suffix = "" if case.name == "weight" else f"_{case.name}"
    other = case.trained().eval()
    trained_further(other)
    with torch.no_grad():
        case.owner(other)._parameters[case.name].add_(0.1)
    (theirs,) = adapted_weights(other).values()
    given = {prefix + case.name: theirs.base, f"{prefix}lora_up{suffix}": theirs.up}
    given |= {f"{prefix}lora_down{suffix}": theirs.down}
    expected = module(*case.inputs())
    for value, definition in zip(
        flat(functional_call(module, given, case.inputs())), flat(other(*case.inputs())), strict=True
    ):
        torch.testing.assert_close(value, definition)
    assert_same(module(*case.inputs()), expected)
    assert weight.base is not theirs.base


@some_cases("Conv1d", "ConvTranspose2d", "dictionary", "standardised")
def test_gradients_of_torch_func_are_those_of_autograd(case):
    module, inputs = case.trained(), case.inputs()
    parameters = dict(module.named_parameters())
    found = grad(lambda p: functional_call(module, p, inputs).square().sum())(parameters)
    module(*inputs).square().sum().backward()
    assert_close(found, {name: parameter.grad for name, parameter in parameters.items()})


CHECKPOINTED = ("Conv1d", "Conv2d", "Conv2d depthwise", "ConvTranspose2d", "Linear", "encoder layer")


@some_cases(*CHECKPOINTED, "weight_norm", "dictionary", "positions", "GRU")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("form", ["reshape", "full"])
def test_a_checkpoint_gives_equal_gradients(case, reentrant, form):
    module, inputs = case.trained(form=form), case.inputs()
    plain = gradients(module, inputs)
    wrapped = [x.detach().requires_grad_() for x in inputs]
    loss = sum(y.square().sum() for y in flat(checkpoint(module, *wrapped, use_reentrant=reentrant)))
    loss.backward()
    (weight,) = adapted_weights(module).values()
    for expected, tensor in zip(plain.values(), (weight.base, *weight.tensors, *wrapped), strict=True):
        torch.testing.assert_close(tensor.grad, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_keeps_its_saving_of_memory(reentrant):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(3, 5, 3), nn.Tanh(), nn.ConvTranspose1d(5, 4, 3), nn.Tanh())
    for layer in (network[0], network[2]):
        add_adapter(layer, rank=2)
    trained(network)
    inside, outside = [], []
    for layer in network:
        layer.register_forward_hook(lambda m, args, y: inside.append(StorageWeakRef(y.untyped_storage())))
    image = torch.randn(2, 3, 9, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: outside.append(t) or t, lambda t: t):
        output = checkpoint(network, image, use_reentrant=reentrant)
        assert [alive.expired() for alive in inside] == [True, True, True, False]
        alone = sum(t.numel() for t in outside if t.data_ptr() != image.data_ptr())
        assert alone == 0
        inside.clear()
        network(image)
        assert sum(t.numel() for t in outside) > image.numel()
    output.sum().backward()
    assert network[0].lora_up.grad.any()


def test_threads_that_call_one_module_at_once_compute_the_same():
    torch.manual_seed(0)
    network = nn.Sequential(nn.ConvTranspose2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 3, 3, groups=3), nn.Tanh())
    for layer in (network[0], network[2]):
        add_adapter(layer)
    trained(network)
    images = [torch.randn(1, 3, 8 + number, 9) for number in range(4)]
    expected = [gradients(network, (image,)) for image in images]

    def work(number: int) -> list[dict]:
        return [gradients(network, (images[number],)) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        for number, results in enumerate(pool.map(work, range(4))):
            for result in results:
                assert_close(result, expected[number])


@some_cases("Conv1d", "Conv2d", "Conv2d depthwise", "ConvTranspose2d", "Linear", "standardised", "einsum")
@pytest.mark.parametrize("form", ["reshape", "full"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_base_in_bfloat16_with_adapters_in_float32_is_merged_in_float32(case: Case, form, autocast):
    module, options = case.module(torch.bfloat16).eval(), {"form": form, "scaling": 0.5}
    trained(add_adapter(module, case.name, rank=1, dtype=torch.float32, **options))
    (weight,) = adapted_weights(module).values()
    added = weight.delta if form == "full" else weight.up @ weight.down
    twin = case.module(torch.bfloat16).eval()
    merged = (weight.base.float() + 0.5 * added.view(weight.base.shape)).bfloat16()
    rounded_twice = weight.base + (0.5 * added.view(weight.base.shape)).bfloat16()
    assert merged.numel() < 20 or not torch.equal(merged, rounded_twice)
    case.owner(twin)._parameters[case.name].data = merged.detach()
    inputs = tuple(x.float() if autocast else x for x in case.inputs(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, expected = module(*inputs), twin(*inputs)
    assert found.dtype == expected.dtype and torch.equal(found, expected)
    found.sum().backward()
    for tensor in weight.tensors:
        assert tensor.dtype == tensor.grad.dtype == torch.float32 and tensor.grad.any()


@some_cases("Conv1d", "ConvTranspose2d", "encoder layer", "dictionary", "Embedding", "LSTMCell")
def test_moves_and_casts_are_followed(case):
    module = case.trained().eval()
    expected = flat(module(*case.inputs()))[0]
    module.double()
    found = flat(module(*(x.double() if x.is_floating_point() else x for x in case.inputs())))[0]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-5)


@some_cases("Conv1d", "Conv2d", "Conv2d depthwise", "Linear", "encoder layer", "dictionary", "LSTMCell")
def test_on_the_meta_device_it_says_the_shapes(case):
    module = case.trained()
    expected = flat(module(*case.inputs()))
    found = flat(module.to("meta")(*(x.to("meta") for x in case.inputs())))
    assert [x.shape for x in found] == [x.shape for x in expected] and all(x.is_meta for x in found)
    (weight,) = adapted_weights(module).values()
    assert weight.merged().shape == weight.base.shape and weight.merged().is_meta
