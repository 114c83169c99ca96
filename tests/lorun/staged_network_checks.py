"""What test_unfolding_stage_weights.py checks, in the interpreter: a network merges each stage at once."""

from __future__ import annotations

import copy
import io
import threading

import torch
from torch import nn
from torch.autograd.profiler import profile
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lorun.denoisers import UNet
from lorun.physics import BlockCS
from lorun.unfolding import UnfoldingNetwork
from lorun_kernels import stage_weights, use_backend
from lorun_kernels.backends import stage_ops

MERGE, MERGE_BACKWARD = "lorun_triton::lora_merge_stage", "lorun_triton::lora_merge_stage_backward"
STAGES = 2
# Triton's interpreter, unlike its compiler, is not for several threads.
INTERPRETER = threading.Lock()


def _network(algorithm: str = "pgd") -> tuple[UnfoldingNetwork, UnfoldingNetwork, torch.Tensor]:
    """A network, the same one that merges layer by layer, and a measurement."""
    torch.manual_seed(0)
    net = UnfoldingNetwork(BlockCS(0.25, block=8), UNet(width=3), STAGES, "lorun", algorithm)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain = copy.deepcopy(net)
    plain._stage_weights = None
    return net, plain, torch.rand(2, 16, 2, 1)


def _trained(net: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def _counts(function) -> tuple[object, list[int]]:
    """The function's result through ATen, and how often a stage was merged, forward and back."""
    with use_backend("aten"), profile() as record:
        result = function()
    names = [event.name for event in record.function_events]
    return result, [names.count(MERGE), names.count(MERGE_BACKWARD)]


def _gradients(net: nn.Module, restored: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(restored.square().sum(), _trained(net)))


def _assert_close(found, expected, tolerance: float = 1e-5) -> None:
    for value, definition in zip(found, expected, strict=True):
        assert value.dtype == definition.dtype and value.stride() == definition.stride()
        scale = definition.abs().max().item()
        torch.testing.assert_close(value, definition, rtol=0, atol=tolerance * scale)


def check_inference(algorithm: str, dtype: torch.dtype | None) -> None:
    net, plain, y = _network(algorithm)
    tile = {"tile": 12, "overlap": 4} if algorithm == "hqs" else {}
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        found, merges = _counts(lambda: net(y, **tile))
        expected, none = _counts(lambda: plain(y, **tile))
    assert merges == [STAGES, 0] and none == [0, 0]
    _assert_close([found], [expected], 1e-5 if dtype is None else 2e-2)


def check_training(dtype: torch.dtype | None) -> None:
    net, plain, y = _network()

    def both(net):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            restored = net(y)
        return [restored, *_gradients(net, restored)]

    found, merges = _counts(lambda: both(net))
    expected, none = _counts(lambda: both(plain))
    assert merges == [STAGES, STAGES] and none == [0, 0]
    _assert_close(found, expected, 1e-5 if dtype is None else 5e-2)


def check_checkpoints() -> None:
    """Of the whole network, and of each denoiser, whose recomputation finds its stage closed."""
    net, plain, y = _network()
    expected, _ = _counts(lambda: _gradients(plain, plain(y)))
    whole, merges = _counts(lambda: _gradients(net, checkpoint(net, y, use_reentrant=False)))
    _assert_close(whole, expected)
    assert merges == [2 * STAGES, STAGES]
    # What merges in the forward pass need not in the recomputation, and the other way round.
    with use_backend("aten"):
        restored = checkpoint(net, y, use_reentrant=False)
    _assert_close(_gradients(net, restored), expected)
    restored = checkpoint(net, y, use_reentrant=False)
    with use_backend("aten"):
        _assert_close(_gradients(net, restored), expected)
    for denoiser in net.denoisers:
        forward = denoiser.forward
        denoiser.forward = lambda *inputs, forward=forward: checkpoint(forward, *inputs, use_reentrant=False)
    parts, merges = _counts(lambda: _gradients(net, net(y)))
    _assert_close(parts, expected)
    assert merges == [STAGES, STAGES]


def check_copies() -> None:
    """Copies and files hold no plan, copies follow their own layers, and no name or tensor is added."""
    net, plain, y = _network()
    assert list(net.state_dict()) == list(plain.state_dict())
    memory = [parameter.data_ptr() for parameter in net.parameters()]
    expected, _ = _counts(lambda: net(y).detach())
    assert [parameter.data_ptr() for parameter in net.parameters()] == memory
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for twin in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert twin._stage_weights._plan is None and net._stage_weights._plan is not None
        found, merges = _counts(lambda twin=twin: twin(y).detach())
        assert merges == [STAGES, 0]
        _assert_close([found], [expected], 0)
        with torch.no_grad():
            for parameter in twin.denoisers.parameters():
                parameter.mul_(1.5)
        changed = copy.deepcopy(twin)
        changed._stage_weights = None
        _assert_close([_counts(lambda twin=twin: twin(y))[0]], [_counts(lambda net=changed: net(y))[0]])
        _assert_close([_counts(lambda: net(y))[0]], [expected], 0)


def check_moves() -> None:
    """To a dtype that has no launch for a stage, to another layout, and back."""
    net, plain, y = _network()
    for options, merged in (
        ({"dtype": torch.float64}, 0),
        ({"dtype": torch.float32}, STAGES),
        ({"memory_format": torch.contiguous_format}, 0),
        ({"memory_format": torch.channels_last}, STAGES),
    ):
        net.to(**options), plain.to(**options)
        y = y.to(net.raw_step.dtype)
        found, merges = _counts(lambda y=y: net(y))
        expected, _ = _counts(lambda y=y: plain(y))
        # Of UNet's 16 adapted layers, one is 1 x 1 and lies in both layouts.
        assert merges == [merged, 0], (options, merges)
        _assert_close([found], [expected])


def _one_at_a_time(op):
    def locked(*arguments):
        with INTERPRETER:
            return op(*arguments)

    return locked


def check_threads() -> None:
    """Several threads in one network at once, with measurements and modes of their own."""
    net, plain, _ = _network()
    with use_backend("aten"):
        ops = tuple(_one_at_a_time(op) for op in stage_ops(net.raw_step, torch.float32))
    stage_weights.stage_ops = lambda weight, dtype: ops
    measurements = [torch.rand(1, 16, 1, 1) for _ in range(3)]
    with use_backend("aten"):
        expected = [plain(y).detach() for y in measurements]
        grads = [_gradients(plain, plain(y)) for y in measurements]
        failures, start = [], threading.Barrier(3)

        def work(y, definition, definition_grads):
            try:
                start.wait()
                for number in range(2):
                    with torch.set_grad_enabled(number == 0):
                        restored = net(y)
                    _assert_close([restored.detach()], [definition])
                    if number == 0:
                        _assert_close(_gradients(net, restored), definition_grads)
            except BaseException as error:
                failures.append(error)

        threads = [
            threading.Thread(target=work, args=args)
            for args in zip(measurements, expected, grads, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    stage_weights.stage_ops = stage_ops
    assert not failures, failures


def check_what_does_not_pay() -> None:
    """Whatever records the network's ops gets the layers themselves."""
    net, plain, y = _network()
    expected, _ = _counts(lambda: plain(y).detach())

    def compiled(net):
        torch.compiler.reset()
        return torch.compile(net, backend="aot_eager", fullgraph=True)

    traced, merges = _counts(lambda: torch.jit.trace(net, y, check_trace=False))
    assert merges == [0, 0]
    for function in (
        lambda: compiled(net)(y),
        lambda: traced(y),
        lambda: torch.export.export(net, (y,)).module()(y),
    ):
        found, merges = _counts(function)
        assert merges == [0, 0]
        _assert_close([found.detach()], [expected])
    seen = []
    with use_backend("aten"):
        assert net._stage_weights.pays()
        torch.vmap(lambda x: seen.append(net._stage_weights.pays()) or x)(y)
        with FlopCounterMode(display=False):
            seen.append(net._stage_weights.pays())
    for backend in ("reference", "triton"):
        with use_backend(backend):
            seen.append(net._stage_weights.pays())
    assert seen == [False] * 4


def check_parameters_that_are_replaced() -> None:
    """By other tensors for a call, and for good by computed ones, and by ones that no other stage shares."""
    net, plain, y = _network()
    _counts(lambda: net(y))
    others = {name: 2 * value.detach() for name, value in net.named_parameters() if "lora" in name}
    for value in others.values():
        value.requires_grad_()
    found, merges = _counts(lambda: torch.func.functional_call(net, others, (y,)))
    expected, _ = _counts(lambda: torch.func.functional_call(plain, others, (y,)))
    assert merges == [STAGES, 0]
    _assert_close([found], [expected])
    with use_backend("aten"):
        _assert_close(
            torch.autograd.grad(found.sum(), list(others.values())),
            torch.autograd.grad(expected.sum(), list(others.values())),
        )
    for changed in (net, plain):
        changed.denoisers[0].bottom.first.scaling = 0.5
        changed.denoisers[1].last = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.ones_(changed.denoisers[1].last.weight)
        nn.utils.parametrizations.orthogonal(changed.denoisers[1].bottom.first, "lora_up")
    _assert_close([_counts(lambda: net(y))[0]], [_counts(lambda: plain(y))[0]])
