"""Bad input to the CASSI ops: an error at the call names the argument, what was expected and what came."""

from __future__ import annotations

import pytest
import torch

import lorun_kernels as lk

CUBE, MEASURED, MASK = (2, 4, 3, 5), (2, 3, 11), (3, 5)


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with lk.use_backend(request.param):
        yield


def arguments(**replaced) -> dict:
    tensors = {"x": torch.rand(CUBE), "y": torch.rand(MEASURED), "mask": torch.rand(MASK), "rho": 0.5}
    return tensors | replaced


STEP_CASES = [
    ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
    ({"y": None}, TypeError, "y must be a torch.Tensor, got NoneType"),
    ({"mask": torch.rand(3, 5, device="meta")}, ValueError, "mask must be on the device of x, cpu, got meta"),
    ({"x": torch.rand(3, 5)}, ValueError, r"x must be \(B, C, H, W\) or \(C, H, W\), got shape \[3, 5\]"),
    ({"x": torch.rand(CUBE).long()}, TypeError, "x must be float32, float64, bfloat16 or float16, got Long"),
    ({"x": torch.rand(2, 4, 3, 0)}, ValueError, "x must have at least one column"),
    ({"x": torch.rand(2, 257, 3, 5)}, ValueError, "between 1 and 256 bands are supported, got 257"),
    ({"y": torch.rand(2, 3, 10)}, ValueError, r"y must have shape \[2, 3, 11\] .* got \[2, 3, 10\]"),
    ({"y": torch.rand(3, 11)}, ValueError, r"y must be \(B, H, W'\) for x of shape \[2, 4, 3, 5\]"),
    ({"y": torch.rand(MEASURED).double()}, TypeError, "y must have the dtype of x, Float, got Double"),
    ({"mask": torch.rand(5, 3)}, ValueError, r"mask must be \(H, W\), .* got shape \[5, 3\]"),
    ({"mask": torch.rand(1, 4, 3, 5)}, ValueError, r"mask must be .* got shape \[1, 4, 3, 5\]"),
    (
        {"mask": torch.rand(4, 3, 11)},
        ValueError,
        "mask must be .*; a stored shifted mask is brought back by .*unshift",
    ),
    ({"mask": torch.rand(MASK).half()}, TypeError, "mask must have the dtype of x, Float, got Half"),
    ({"rho": float("nan")}, ValueError, "rho must be a finite number or a tensor, got nan"),
    ({"rho": "0.5"}, ValueError, "rho must be a finite number or a tensor, got '0.5'"),
    ({"rho": torch.rand(3)}, ValueError, r"rho must be one value or one for each of the 2 samples, .*\[3\]"),
    ({"rho": torch.rand(2, 4)}, ValueError, "rho must be one value or one for each"),
    ({"rho": torch.ones(2).long()}, TypeError, "rho must be floating point, got torch.int64"),
    ({"step": -1}, ValueError, "step must shift every band to the right, by at most .* columns, got -1"),
    ({"step": 2.0}, TypeError, "step must be an int, or one int for each band .*, got 2.0"),
    ({"step": True}, TypeError, "step must be an int, or one int for each band .*, got True"),
    ({"step": [0, 2, 4]}, ValueError, "step must have one offset for each of the 4 bands, got 3"),
    ({"step": [0, 2, 4, -6]}, ValueError, r"step must shift every band to the right, .* got \[0, 2, 4, -6\]"),
    ({"step": [0, 2, 4, 6.0]}, TypeError, "step must be an int, or one int for each band"),
    ({"step": 2**70}, ValueError, "step must shift every band to the right"),
    ({"step": []}, ValueError, "step must have one offset for each of the 4 bands, got 0"),
    ({"x": torch.rand(2, 0, 3, 5)}, ValueError, "between 1 and 256 bands are supported, got 0"),
    ({"x": torch.rand(CUBE).to_sparse()}, ValueError, "x must be a dense tensor"),
    ({"rho": 1e60}, ValueError, "rho must be a finite number or a tensor, got 1e\\+60"),
    ({"rho": 10**400}, ValueError, "rho must be a finite number or a tensor"),
    ({"rho": True}, ValueError, "rho must be a finite number or a tensor, got True"),
    ({"step": torch.arange(4.0)}, ValueError, "step as a tensor must hold one integer offset for each band"),
    ({"step": 2**40}, ValueError, "step must shift every band to the right, by at most 1073741823 columns"),
]


@pytest.mark.parametrize("replaced, error, message", STEP_CASES)
@pytest.mark.parametrize("name", ["cassi_pgd_step", "cassi_pgd_step_"])
def test_pgd_step_refuses_by_name(backend, name, replaced, error, message):
    with pytest.raises(error, match=f"^{name}: {message}"):
        getattr(lk, name)(**arguments(**replaced))


def test_hqs_step_names_its_own_arguments(backend):
    x, y, mask, _ = arguments().values()
    with pytest.raises(
        ValueError, match="cassi_hqs_step: mu must be a finite number >= 0 or a tensor, got -1"
    ):
        lk.cassi_hqs_step(x, y, mask, -1.0)
    with pytest.raises(ValueError, match=r"cassi_hqs_step: w must be \(B, C, H, W\)"):
        lk.cassi_hqs_step(x[0, 0], y, mask, 1.0)
    with pytest.raises(TypeError, match="cassi_hqs_step: y must have the dtype of w, Double, got Float"):
        lk.cassi_hqs_step(x.double(), y, mask.double(), 1.0)
    with pytest.raises(ValueError, match="mu must be one value or one for each of the 2 samples"):
        lk.cassi_hqs_step(x, y, mask, torch.rand(3))


@pytest.mark.parametrize(
    "args, error, message",
    [
        ((torch.rand(2), torch.rand(MASK), 4), ValueError, r"y must be \(B, H, W'\) or \(H, W'\)"),
        ((torch.rand(MEASURED), torch.rand(MASK), 0), ValueError, "bands must be an int between 1 and 256"),
        ((torch.rand(MEASURED), torch.rand(MASK), 4.0), ValueError, "bands must be an int between 1 and 256"),
        ((torch.rand(MEASURED), torch.rand(MASK), 5), ValueError, r"mask must be .* \[2, 5, 3, 3\]"),
        (
            (torch.rand(MEASURED), torch.rand(MASK), 4, 4),
            ValueError,
            "y must be wider than the largest offset",
        ),
        ((torch.rand(MEASURED).int(), torch.rand(MASK), 4), TypeError, "y must be float32"),
        (
            (torch.rand(MEASURED), torch.rand(MASK), 4, 2, torch.preserve_format),
            ValueError,
            "memory_format must be torch.contiguous_format or torch.channels_last",
        ),
    ],
)
def test_adjoint_refuses_by_name(backend, args, error, message):
    with pytest.raises(error, match=f"cassi_adjoint: {message}"):
        lk.cassi_adjoint(*args)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: lk.cassi_gram(torch.ones(3, 5).int(), 4),
            TypeError,
            "cassi_gram: mask must be floating point",
        ),
        (
            lambda: lk.cassi_gram(torch.rand(3, 5), 0),
            ValueError,
            "cassi_gram: bands must be an int between 1",
        ),
        (
            lambda: lk.cassi_gram(torch.rand(3, 5), 4.0),
            ValueError,
            "cassi_gram: bands must be an int between 1",
        ),
        (
            lambda: lk.cassi_forward(torch.rand(CUBE), torch.rand(1, 1)),
            ValueError,
            "cassi_forward: mask must be",
        ),
        (lambda: lk.cassi_forward(torch.rand(CUBE).int(), torch.rand(MASK)), TypeError, "x must be float32"),
        (lambda: lk.cassi_gram(torch.rand(3), 4), ValueError, r"cassi_gram: mask must be \(H, W\)"),
        (
            lambda: lk.cassi_gram(torch.rand(4, 3, 5), 5),
            ValueError,
            "bands must be the mask's own, 4 .* got 5",
        ),
    ],
)
def test_helpers_refuse_by_name(backend, call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", ["y", "mask", "rho"])
def test_a_cube_that_shares_memory_with_an_operand_cannot_be_stepped_in_place(name):
    memory = torch.rand(200)
    x = memory[:120].view(CUBE)
    shared = {"y": memory[100:166].view(MEASURED), "mask": x[0, 1], "rho": memory[3]}[name]
    args = arguments(x=x, **{name: shared})
    with pytest.raises(ValueError, match=rf"{name} must not share memory with x, .* call {name}.clone\(\)"):
        lk.cassi_pgd_step_(**args)
    # Beside each other in one block of memory is allowed.
    lk.cassi_pgd_step_(**arguments(x=x, y=memory[120:186].view(MEASURED)))


def test_autocast_refuses_integers_too():
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(TypeError, match="mask must have the dtype of x"),
    ):
        lk.cassi_forward(torch.rand(CUBE), torch.ones(MASK).bool())


def test_an_expanded_cube_cannot_be_stepped_in_place():
    x, y, mask, rho = arguments(x=torch.rand(1, 1, 3, 5).expand(CUBE)).values()
    with pytest.raises(ValueError, match=r"x must not be an expanded tensor; call .contiguous\(\) first"):
        lk.cassi_pgd_step_(x, y, mask, rho)


RAW_OPS = {
    "cassi_forward": [CUBE, MASK, [0, 2, 4, 6], "cpu"],
    "cassi_adjoint": [MEASURED, MASK, [0, 2, 4, 6], False, "cpu"],
    "cassi_mask_grad": [CUBE, MEASURED, 2, [0, 2, 4, 6], "cpu"],
    "cassi_step": [CUBE, MEASURED, MASK, (), [0, 2, 4, 6], True, "cpu"],
    "cassi_step_residual": [CUBE, MEASURED, MASK, (2,), [0, 2, 4, 6], False, "cpu"],
    "cassi_step_": [CUBE, MEASURED, MASK, (), [0, 2, 4, 6], False, "cpu"],
    "cassi_step_backward": [CUBE, MEASURED, CUBE, MASK, (), [0, 2, 4, 6], True, [True] * 4, "cpu"],
}


def raw_arguments(name):
    return [torch.rand(a) if isinstance(a, tuple) else a for a in RAW_OPS[name]]


@pytest.mark.parametrize("name", RAW_OPS)
def test_ops_called_directly_with_any_shape_dtype_or_offsets_raise_and_never_crash(name):
    op = getattr(torch.ops.lorun, name)
    op(*raw_arguments(name))
    wrong = [torch.rand(s) for s in [(0,), (5,), (2, 3), (4, 3, 6), (2, 4, 5, 3), (1, 1, 1, 1, 1)]]
    wrong += [torch.ones(CUBE).int(), torch.rand(MEASURED).double()]
    for position, argument in enumerate(raw_arguments(name)):
        if isinstance(argument, torch.Tensor):
            replacements = [w for w in wrong if w.shape != argument.shape or w.dtype != argument.dtype]
        elif argument == [0, 2, 4, 6]:
            replacements = [[], [0], [0, 2, 4, -6], [0] * 300, [0, 2, 4, 2**62]]
        elif argument == "cpu":
            replacements = ["", "cuda", "gpu", "triton"]
        else:
            continue
        for replacement in replacements:
            args = raw_arguments(name)
            args[position] = replacement
            with pytest.raises((ValueError, TypeError, RuntimeError)):
                op(*args)
