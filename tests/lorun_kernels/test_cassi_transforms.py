"""torch.compile, torch.export, autocast and opcheck of the CASSI ops."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

import lorun_kernels as lk

MASK_SHAPES = [(3, 5), (4, 3, 5), (2, 4, 3, 5)]
STEPS = {"pgd": lk.cassi_pgd_step, "hqs": lk.cassi_hqs_step}


def draw(mask_shape=(3, 5), dtype=torch.float32):
    shapes = [(2, 4, 3, 5), (2, 3, 11), mask_shape, (2,)]
    return [torch.rand(shape).to(dtype) if len(shape) > 1 else torch.rand(shape) for shape in shapes]


class Unfolding(nn.Module):
    """Two stages with every op, learned mask, rho and mu."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.rand(3, 5))
        self.scale = nn.Parameter(torch.rand(2))
        self.denoiser = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, y):
        x = lk.cassi_adjoint(y, self.mask, 4, memory_format=torch.channels_last)
        x = self.denoiser(lk.cassi_pgd_step(x, y, self.mask, self.scale[0]))
        x = self.denoiser(lk.cassi_hqs_step(x, y, self.mask, self.scale[1]))
        return x, lk.cassi_forward(x, self.mask), lk.cassi_gram(self.mask, 4)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def results(network, function, y):
    outputs = function(y)
    loss = sum(out.square().sum() for out in outputs)
    return [*outputs, *torch.autograd.grad(loss, list(network.parameters()))]


def test_compiles_to_one_graph_forward_and_backward():
    network, y = Unfolding(), torch.rand(2, 3, 11)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for value, eager in zip(results(network, compiled, y), results(network, network, y), strict=True):
        torch.testing.assert_close(value, eager)
        assert value.stride() == eager.stride()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_compiles_forward_and_backward():
    network, y = Unfolding(), torch.rand(2, 3, 11)
    compiled = torch.compile(network, fullgraph=True)
    for value, eager in zip(results(network, compiled, y), results(network, network, y), strict=True):
        torch.testing.assert_close(value, eager)


def test_compiles_an_in_place_step_and_irregular_offsets():
    def step(x, y, mask):
        x = x * 2
        lk.cassi_hqs_step_(x, y, mask, 0.5, (0, 3, 1, 6))
        return x + 1

    x, y, mask, _ = draw()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y, mask), step(x, y, mask))


def test_compiles_once_for_every_size_and_batch():
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph

    compiled = torch.compile(lk.cassi_hqs_step, fullgraph=True, dynamic=True, backend=backend)
    for batch, height, width in [(2, 3, 5), (3, 8, 6), (4, 5, 9)]:
        x, mask = torch.rand(batch, 4, height, width), torch.rand(height, width)
        args = (x, torch.rand(batch, height, width + 6), mask, torch.tensor(0.5))
        torch.testing.assert_close(compiled(*args), lk.cassi_hqs_step(*args))
    assert len(calls) == 1


def test_a_compiled_function_follows_use_backend():
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    args = draw()
    compiled = torch.compile(lk.cassi_pgd_step, fullgraph=True, backend=backend)
    expected = lk.cassi_pgd_step(*args)
    torch.testing.assert_close(compiled(*args), expected)
    with lk.use_backend("reference"):
        torch.testing.assert_close(compiled(*args), expected)
    torch.testing.assert_close(compiled(*args), expected)
    assert ["lorun.cassi_step" in graph for graph in graphs] == [True, False]


def test_exports_with_a_dynamic_batch():
    network = Unfolding()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (torch.rand(2, 3, 11),), dynamic_shapes=({0: batch},))
    y = torch.rand(5, 3, 11)
    for value, expected in zip(program.module()(y), network(y), strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("mask_shape", MASK_SHAPES, ids=str)
def test_opcheck(mask_shape):
    x, y, mask, scale = (t.double().requires_grad_() for t in draw(mask_shape))
    offsets = [0, 2, 4, 6]
    ops = torch.ops.lorun
    plain = [t.detach() for t in (x, y, mask, scale)]
    torch.library.opcheck(ops.cassi_forward, (x, mask, offsets, "cpu"))
    torch.library.opcheck(ops.cassi_adjoint, (y, mask, offsets, True, "cpu"))
    torch.library.opcheck(ops.cassi_mask_grad, (x, y, mask.dim(), offsets, "cpu"))
    for hqs in (False, True):
        torch.library.opcheck(ops.cassi_step, (x, y, mask, scale, offsets, hqs, "cpu"))
        torch.library.opcheck(ops.cassi_step_residual, (*plain, offsets, hqs, "cpu"))
        torch.library.opcheck(ops.cassi_step_, (*plain, offsets, hqs, "cpu"))
        for wanted in ([True] * 4, [True, False, False, False], [False, True, True, False]):
            args = (plain[0], plain[1], plain[0], plain[2], plain[3], offsets, hqs, wanted, "cpu")
            torch.library.opcheck(ops.cassi_step_backward, args)


def test_autocast_meets_in_the_widest_type_and_rounds_no_measurement():
    x, y, mask, scale = draw()
    rounded = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = lk.cassi_hqs_step(rounded, y, mask, scale)
        forward = lk.cassi_forward(rounded, mask)
        adjoint = lk.cassi_adjoint(y, mask.bfloat16(), 4)
    exact = rounded.float()
    assert out.dtype == forward.dtype == adjoint.dtype == torch.float32
    assert torch.equal(out, lk.cassi_hqs_step(exact, y, mask, scale))
    assert torch.equal(forward, lk.cassi_forward(exact, mask))
    assert torch.equal(adjoint, lk.cassi_adjoint(y, mask.bfloat16().float(), 4))
    out.sum().backward()
    assert rounded.grad.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert lk.cassi_forward(x.bfloat16(), mask.bfloat16()).dtype == torch.bfloat16


def test_meta_tensors_give_shapes_dtypes_and_layouts():
    for mask_shape in MASK_SHAPES:
        x, y, mask, scale = draw(mask_shape)
        x = x.to(memory_format=torch.channels_last)
        for step in STEPS.values():
            out = step(*(t.to("meta") for t in (x, y, mask, scale)))
            real = step(x, y, mask, scale)
            assert out.shape == real.shape and out.stride() == real.stride()
