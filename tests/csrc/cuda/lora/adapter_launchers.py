"""The launchers of the adapter's gradients on the emulated device, with tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import Structure, byref, c_bool, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from ..on_host.emulator import run
from .launchers import Adapted, Call, Geometry, ProblemView, WeightView, problem_view


class PlanView(Structure):
    _fields_ = [(name, c_int32) for name in ("channels", "rows", "columns", "parts", "splits", "shared")]


class LoraAdapter:
    """Copies inputs between guards, gives outputs the layout of their `like`, and checks all guards."""

    def __init__(self, library: ctypes.CDLL, new_call: Callable[[], Call] = Call):
        self.library = library
        self._new_call = new_call
        library.lora_grad_adapter_workspace.restype = c_int64

    def workspace(self, problem: ProblemView, weight: WeightView, deterministic: bool) -> int:
        """Bytes."""
        size = self.library.lora_grad_adapter_workspace
        return size(byref(problem), byref(weight), c_bool(deterministic))

    def plan(self, problem: ProblemView) -> PlanView:
        plan = PlanView()
        self.library.lora_adapter_plan(byref(problem), byref(plan))
        return plan

    def grad_adapter(
        self,
        grad: Tensor,
        input: Tensor,
        input2: Tensor | None,
        adapted: Adapted,
        geometry: Geometry,
        before: tuple[Tensor | None, Tensor | None],
        tf32: bool = False,
        deterministic: bool = False,
    ) -> tuple[Tensor | None, Tensor | None]:
        """`before` and the gradients of up and down together."""
        call = self._new_call()
        second = 0 if input2 is None else input2.shape[1]
        whole = input if input2 is None else torch.cat([input, input2], 1)
        problem = problem_view(whole, grad.shape[2:], adapted.weight, geometry, second, tf32)
        weight = call.weight(adapted)
        weight.base = None
        size = self.workspace(problem, weight, deterministic)
        workspace = call.guarded(torch.empty(size // 4), False)
        images = [byref(call.image(image)[0]) for image in (grad, input, input2)]
        results = [None if like is None else call.guarded(like, True) for like in before]
        pointers = [c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in results]
        run(
            self.library,
            self.library.lora_grad_adapter,
            *(byref(problem), *images, byref(weight), *pointers),
            *(c_void_p(workspace.data_ptr() if size else None), c_bool(deterministic)),
        )
        call.check()
        return results[0], results[1]
