"""The CASSI ops on a GPU, on every backend that runs there, against the reference in float64."""

from __future__ import annotations

import pytest
import torch

import lorun_kernels as lk
from lorun_kernels import reference

pytestmark = pytest.mark.gpu

# (B, C, H, W) and step: the simulation and real scenes, odd sizes, many bands, offsets that are not linear.
SHAPES = {
    "simulation": ((2, 28, 256, 256), 2),
    "real scene": ((1, 28, 660, 660), 2),
    "odd": ((3, 31, 7, 129), 1),
    "one pixel": ((1, 1, 1, 1), 2),
    "256 bands": ((1, 256, 3, 65), 1),
    "rows too large for shared memory": ((1, 200, 2, 700), 2),
    "irregular": ((2, 4, 5, 33), (3, 0, 7, 3)),
}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# Sums over the whole cube lose a few more digits than sums over a row.
GRADIENT_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 6e-3}
USUAL_DTYPES = (torch.float32, torch.bfloat16)
STEPS = {
    "pgd": (lk.cassi_pgd_step, reference.cassi_pgd_step, lk.cassi_pgd_step_),
    "hqs": (lk.cassi_hqs_step, reference.cassi_hqs_step, lk.cassi_hqs_step_),
}


# (shape, mask_dim, dtype, layout): everything on one small shape, and the usual on all others, since each
# combination is another kernel for Triton to compile.
CASES = {
    f"{name}, mask {mask_dim}-D, {dtype}, {layout}": (*SHAPES[name], mask_dim, dtype, layout)
    for name in SHAPES
    for mask_dim in (2, 3, 4)
    for dtype in TOLERANCES
    for layout in (torch.contiguous_format, torch.channels_last)
    if name == "odd" or (mask_dim, layout) == (2, torch.contiguous_format) and dtype in USUAL_DTYPES
}


@pytest.fixture(params=["cuda", "triton"])
def backend(request):
    with lk.use_backend(request.param):
        yield request.param


def draw(shape, step, mask_dim, dtype, layout=torch.contiguous_format):
    """x, y, mask and one rho or mu per sample, and the same in float64."""
    batch, bands, height, width = shape
    measured = width + max(reference.band_offsets(step, bands))
    mask = torch.rand(shape[4 - mask_dim :])
    mask = mask * (torch.rand_like(mask) > 0.3)
    values = [torch.randn(shape), torch.randn(batch, height, measured), mask]
    scale = 0.2 + torch.rand(batch, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    values = [v.to("cuda", dtype) for v in values] + [scale.cuda()]
    values[0] = values[0].to(memory_format=layout)
    return values, [v.double() for v in values]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_op_agrees_with_the_reference(backend, case, relative_error):
    shape, step, mask_dim, dtype, layout = case
    (x, y, mask, scale), exact = draw(*case)
    results = [
        (lk.cassi_forward(x, mask, step), reference.cassi_forward(exact[0], exact[2], step)),
        (
            lk.cassi_adjoint(y, mask, shape[1], step, memory_format=layout),
            reference.cassi_adjoint(exact[1], exact[2], shape[1], step),
        ),
        (lk.cassi_gram(mask, shape[1], step), reference.cassi_gram(exact[2], shape[1], step)),
        (lk.cassi_pgd_step(x, y, mask, scale, step), reference.cassi_pgd_step(*exact, step)),
        (lk.cassi_hqs_step(x, y, mask, scale, step), reference.cassi_hqs_step(*exact, step)),
    ]
    for value, expected in results:
        assert value.is_cuda and value.dtype == dtype
        assert relative_error(value, expected) < TOLERANCES[dtype]


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_gradients_agree_with_the_reference(backend, case, name, relative_error):
    shape, step, _, dtype, _ = case
    values, _ = draw(*case)
    # A closed element of the mask has a kink in pixels in which nothing else is measured.
    values[2] = values[2] + 0.125
    leaves = [v.detach().requires_grad_() for v in values]
    exact = [v.detach().double().requires_grad_() for v in values]
    grad = torch.randn(shape).to("cuda", dtype)
    got = torch.autograd.grad(STEPS[name][0](*leaves, step), leaves, grad)
    expected = torch.autograd.grad(STEPS[name][1](*exact, step), exact, grad.double())
    for value, true in zip(got, expected, strict=True):
        assert relative_error(value, true) < GRADIENT_TOLERANCES[dtype]


@pytest.mark.parametrize("name", STEPS)
def test_results_and_gradients_are_the_same_bits_every_time(backend, name):
    values, _ = draw((2, 28, 64, 64), 2, 2, torch.float32)
    leaves = [v.requires_grad_() for v in values]

    def run():
        out = STEPS[name][0](*leaves)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", STEPS)
def test_in_place_and_strided_views(backend, name):
    step, _, step_ = STEPS[name]
    (x, y, mask, scale), _ = draw((2, 28, 33, 40), 2, 2, torch.float32)
    expected = step(x, y, mask, scale)
    wide = torch.zeros(2, 28, 33, 47, device="cuda")
    view = wide[..., 3:43]
    view.copy_(x)
    assert torch.equal(step(view, y, mask, scale), expected)
    assert step_(view, y, mask, scale) is view
    torch.testing.assert_close(view, expected)
    assert wide[..., :3].eq(0).all() and wide[..., 43:].eq(0).all()
    torch.testing.assert_close(
        step(x, y[:1].expand_as(y), mask, scale), step(x, y[:1].repeat(2, 1, 1), mask, scale)
    )


def test_a_captured_graph_replays_with_new_data(backend):
    (x, y, mask, scale), _ = draw((1, 28, 64, 64), 2, 2, torch.float32)

    def stages():
        z = lk.cassi_adjoint(y, mask, 28)
        z = lk.cassi_pgd_step(z + x, y, mask, scale)
        lk.cassi_hqs_step_(z, y, mask, scale)
        return z, lk.cassi_forward(z, mask)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        stages()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = stages()
    for tensor in (x, y, mask, scale):
        tensor.copy_(torch.rand_like(tensor))
    graph.replay()
    for value, expected in zip(captured, stages(), strict=True):
        assert torch.equal(value, expected)


def test_runs_on_the_current_stream(backend):
    (x, y, mask, scale), _ = draw((1, 28, 256, 256), 2, 2, torch.float32)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        changed = x * 2
        out = lk.cassi_hqs_step(changed, y, mask, scale)
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(out, lk.cassi_hqs_step(x * 2, y, mask, scale))


def test_compiles_forward_and_backward(backend):
    (x, y, mask, scale), _ = draw((2, 28, 32, 40), 2, 2, torch.float32)
    leaves = [t.requires_grad_() for t in (x, y, scale)]
    compiled = torch.compile(lk.cassi_hqs_step, fullgraph=True)

    def run(function):
        out = function(x, y, mask, scale) * 2
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    for value, eager in zip(run(compiled), run(lk.cassi_hqs_step), strict=True):
        torch.testing.assert_close(value, eager)


def test_autocast_keeps_the_measurement_whole(backend):
    (x, y, mask, scale), _ = draw((2, 28, 32, 40), 2, 2, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        out = lk.cassi_hqs_step(x.bfloat16(), y, mask, scale)
    assert torch.equal(out, lk.cassi_hqs_step(x.bfloat16().float(), y, mask, scale))


def test_a_step_allocates_its_output_and_nothing_else(backend):
    (x, y, mask, scale), _ = draw((1, 28, 256, 256), 2, 2, torch.float32)
    for step, _, step_ in STEPS.values():
        step(x, y, mask, scale)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(x, y, mask, scale)
        assert torch.cuda.max_memory_allocated() - before == x.numel() * 4
        torch.cuda.reset_peak_memory_stats()
        step_(x, y, mask, scale)
        assert torch.cuda.max_memory_allocated() == before


def test_the_default_on_a_gpu_can_run():
    x = torch.rand(1, 28, 8, 8, device="cuda")
    chosen = lk.backends.cassi_backend(x)
    assert chosen in ("cuda", "triton") and lk.available_backends()[chosen] is None


@pytest.mark.parametrize("shape, step", SHAPES.values(), ids=SHAPES.keys())
def test_the_reference_itself_agrees_with_the_cpu(shape, step):
    _, exact = draw(shape, step, 2, torch.float32)
    with lk.use_backend("reference"):
        out = lk.cassi_hqs_step(*exact, step)
    torch.testing.assert_close(out.cpu(), lk.cassi_hqs_step(*(t.cpu() for t in exact), step))


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_both_gpu_backends_can_run(name):
    assert lk.available_backends()[name] is None


def test_tensors_on_different_devices_are_refused_by_name():
    x, mask = torch.rand(1, 4, 3, 5, device="cuda"), torch.rand(3, 5)
    with pytest.raises(ValueError, match="mask must be on the device of x, cuda:0, got cpu"):
        lk.cassi_forward(x, mask)
    with pytest.raises(ValueError, match="rho must be on device cuda:0, got cpu"):
        lk.cassi_pgd_step(x, torch.rand(1, 3, 11, device="cuda"), mask.cuda(), torch.tensor(0.5))
    message = 'backend "cpu" needs tensors on the CPU, got cuda:0'
    with pytest.raises(ValueError, match=message), lk.use_backend("cpu"):
        lk.cassi_forward(x, mask.cuda())
