"""All adapters of a K-stage network in one stack; a stage is merged, and differentiated, in one launch."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lorun_kernels.backends import StageOps, stage_ops
from lorun_kernels.lora_conv_layer import FusedLoRAConv2d
from lorun_kernels.lora_merge import merge_lora


def _adapted_layers(stage: nn.Module) -> list[FusedLoRAConv2d]:
    layers = [layer for layer in stage.modules() if isinstance(layer, FusedLoRAConv2d)]
    return [layer for layer in layers if layer.rank is not None]


def _check_alike(stages: list[list[FusedLoRAConv2d]]) -> None:
    if not stages or not stages[0]:
        raise ValueError("StageWeights: expected at least one stage with a FusedLoRAConv2d of some rank")
    for number, layers in enumerate(stages):
        if len(layers) != len(stages[0]):
            raise ValueError(
                f"StageWeights: stage {number} has {len(layers)} adapted convolutions, stage 0 has "
                f"{len(stages[0])}; every stage must adapt the same layers"
            )
        for index, (layer, first) in enumerate(zip(layers, stages[0], strict=True)):
            same = layer.weight is first.weight and layer.scaling == first.scaling
            if not same or _parts(layer)[1].shape != _parts(first)[1].shape or layer.form != first.form:
                raise ValueError(
                    f"StageWeights: layer {index} of stage {number} must share its weight with stage 0 and "
                    "have the same rank, form and scaling; make the stages with FusedLoRAConv2d.from_conv"
                )
    layers = [layer for stage in stages for layer in stage]
    kinds = {(tensor.dtype, tensor.device) for layer in layers for tensor in _parts(layer)}
    if len(kinds) > 1:
        raise ValueError(f"StageWeights: all layers must have one dtype and device, got {kinds}")
    if len({id(factor) for layer in layers for factor in _parts(layer)[1:]}) < 2 * len(layers):
        raise ValueError("StageWeights: two layers share an adapter; every stage must have its own")


def _parts(layer: FusedLoRAConv2d) -> tuple[Tensor, Tensor, Tensor]:
    """Base, up and down, without nn.Module's slow attributes: every merge looks at all of them."""
    parameters: dict[str, Any] = layer._parameters
    return parameters["weight"], parameters["lora_up"], parameters["lora_down"]


class _StageMerge(torch.autograd.Function):
    """The merge of a stage: from all `lora_up`, then all `lora_down`, to the weights in the scratch."""

    @staticmethod
    def forward(
        ctx: Any, weights: StageWeights, stage: int, ops: StageOps, *factors: Tensor
    ) -> tuple[Tensor, ...]:
        weights._fill(stage, ops)
        ctx.set_materialize_grads(False)
        ctx.weight_sizes = [view.numel() for view in weights._views]
        ctx.table, ctx.most = weights._table, weights._most_rows_and_columns
        _, ctx.backward_op = ops
        # The factors themselves are saved so that autograd notices if they change before the backward pass.
        ctx.save_for_backward(weights.ups[stage], weights.downs[stage], *factors)
        # Not views of the scratch: autograd would take the next stage's merge for a change of this one.
        merged = tuple(view.data for view in weights._views)
        learns = [any(needed) for needed in _pairs(ctx.needs_input_grad[3:])]
        ctx.mark_non_differentiable(*(w for w, learn in zip(merged, learns, strict=True) if not learn))
        return merged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        some = next((grad for grad in grads if grad is not None), None)
        if some is None:
            # Layers on another backend have summed their own.
            return (None,) * len(ctx.needs_input_grad)
        ups, downs, *factors = ctx.saved_tensors
        grad_ups, grad_downs = torch.empty_like(ups), torch.empty_like(downs)
        weight_grads = [
            some.new_zeros(size) if grad is None else grad.permute(0, 2, 3, 1).flatten()
            for grad, size in zip(grads, ctx.weight_sizes, strict=True)
        ]
        ctx.backward_op(ctx.table, ups, downs, *ctx.most, torch.cat(weight_grads), grad_ups, grad_downs)
        parts = _split_like(grad_ups, factors[: len(grads)]) + _split_like(grad_downs, factors[len(grads) :])
        given = [grad is not None for grad in grads] * 2
        wanted = zip(ctx.needs_input_grad[3:], given, parts, strict=True)
        return None, None, None, *(part if needed and there else None for needed, there, part in wanted)


def _pairs(values: Sequence) -> zip:
    """What belongs to the up and the down of each layer, of a sequence for all ups, then all downs."""
    count = len(values) // 2
    return zip(values[:count], values[count:], strict=True)


def _split_like(stack: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    parts = stack.split([factor.numel() for factor in factors])
    return [part.view(factor.shape) for part, factor in zip(parts, factors, strict=True)]


class StageWeights:
    """The adapters of a K-stage network in one stack, merged stage by stage into one reused scratch.

    A network that shares one denoiser merges a hundred small weights a pass, one launch each. Here a stage
    takes one launch, and its layers then read W from a scratch of one stage's weights:

        stages = lk.StageWeights(network.denoisers)
        for k, denoiser in enumerate(network.denoisers):
            with stages.stage(k):
                x = denoiser(x, noise_level)

    Every `lora_up` and `lora_down` stays the Parameter it was, of the same name and optimizer; its memory
    becomes a part of the stack. Loading other adapters writes there, so that a captured CUDA graph replays
    with them; after ``.to()`` or another scaling, merge once and capture again. In training the forward pass
    reads the scratch, and a layer's backward pass merges W for itself: nothing is kept per stage. On a GPU
    the gradients of a stage's adapters are computed in one launch, the same bits every time, from d W of its
    layers, which exists until then, in the scratch's dtype, and once more side by side; their `.grad` are
    parts of one tensor. Layers on the "cuda" or "triton" backend form no d W and sum their own. While a
    stage's context is open, no parameter may change, and nothing be exported: the scratch would not follow.
    Not for threads that run stages of one network at a time.
    ``torch.save`` of one adapter stores its whole stack; safetensors, or a clone, does not.

    Args:
        stages: K modules whose :class:`FusedLoRAConv2d` layers, in order, share their base weights.
            Linear layers and full additive weights are left as they are.
        dtype: the type that the layers are called in, such as the one of autocast; default: the parameters'.

    Attributes:
        scratch: the merged weights of one stage, one-dimensional.
        ups, downs: (K, elements), the stacked factors.

    Raises:
        ValueError: stages that do not share their layers, or share an adapter.
    """

    def __init__(self, stages: Sequence[nn.Module] | nn.ModuleList, dtype: torch.dtype | None = None) -> None:
        self._stages = [_adapted_layers(stage) for stage in stages]
        self._dtype = dtype
        self._active: int | None = None
        self._owner: int | None = None
        self._lock = threading.Lock()
        self._stream: torch.cuda.Stream | None = None
        self._stack()

    @staticmethod
    def pays(stages: Sequence[nn.Module] | nn.ModuleList) -> bool:
        """Whether merging a stage at once is faster than layer by layer: if one launch does it, on a GPU.

        Never under torch.compile and torch.export, which see no contexts that change layers.
        """
        if torch.compiler.is_compiling():
            return False
        layers = _adapted_layers(stages[0])
        return bool(layers) and stage_ops(layers[0].weight) is not None

    @torch.inference_mode(False)
    def _stack(self) -> None:
        """Move every factor into the stack, and lay out the scratch."""
        _check_alike(self._stages)
        first = self._stages[0]
        self.ups, self.downs = self._stacked("lora_up"), self._stacked("lora_down")
        sizes = [layer.weight.numel() for layer in first]
        weight = first[0].weight
        self.scratch = torch.empty(sum(sizes), device=weight.device, dtype=self._dtype or weight.dtype)
        self._views = [
            part.view(layer.weight.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
            for part, layer in zip(self.scratch.split(sizes), first, strict=True)
        ]
        self._most_elements = max(sizes)
        matrices = [(up.shape[0], down.shape[1]) for _, up, down in map(_parts, first)]
        self._most_rows_and_columns = tuple(max(lengths) for lengths in zip(*matrices, strict=True))
        self._table = self._make_table()
        self._stacked_as = [self._identity_of(layers) for layers in self._stages]

    @torch.no_grad()
    def _stacked(self, name: str) -> Tensor:
        """Give one factor of every layer the memory of a new stack, (K, elements)."""
        stack = torch.stack(
            [torch.cat([getattr(layer, name).flatten() for layer in layers]) for layers in self._stages]
        )
        for row, layers in zip(stack, self._stages, strict=True):
            factors = [getattr(layer, name) for layer in layers]
            parts = row.split([factor.numel() for factor in factors])
            for factor, part in zip(factors, parts, strict=True):
                factor.data = part.view(factor.shape)
        return stack

    def _make_table(self) -> Tensor:
        """What the grouped kernel reads of each layer, 16 numbers a row: see `lora_merge_stage`."""
        rows, offsets = [], [0, 0, 0]
        for layer in self._stages[0]:
            weight, up, down = _parts(layer)
            scaling = struct.unpack("<i", struct.pack("<f", layer.scaling))[0]
            rows.append(
                [weight.data_ptr(), *weight.stride(), down.shape[0], down.shape[1], *weight.shape, *offsets]
                + [scaling, 0]
            )
            for index, part in enumerate((up, down, weight)):
                offsets[index] += part.numel()
        return torch.tensor(rows, dtype=torch.int64).to(self._stages[0][0].weight.device)

    @staticmethod
    def _identity_of(layers: list[FusedLoRAConv2d]) -> list[tuple]:
        """What the stack and its table hold of a stage besides values."""
        return [(layer.scaling, *(tensor.data_ptr() for tensor in _parts(layer))) for layer in layers]

    def _prepare(self, stage: int) -> None:
        """Refuse a stage that does not exist, and follow parameters that have moved."""
        if not 0 <= stage < len(self._stages):
            raise IndexError(f"StageWeights: expected a stage from 0 to {len(self._stages) - 1}, got {stage}")
        if self._identity_of(self._stages[stage]) != self._stacked_as[stage]:
            # .to() or .half() has given the parameters other memory.
            self._stack()

    @torch.no_grad()
    def _fill(self, stage: int, ops: StageOps | None) -> None:
        if ops is None:
            for layer, view in zip(self._stages[stage], self._views, strict=True):
                view.copy_(merge_lora(*_parts(layer), layer.scaling, layer.form))
            return
        merge, _ = ops
        merge(self._table, self.ups[stage], self.downs[stage], self._most_elements, self.scratch)

    def _merged(self, stage: int) -> Sequence[Tensor]:
        """The weights of `stage` in the scratch; where one launch does it, its gradients too."""
        ops = stage_ops(self.scratch)
        if torch.is_grad_enabled() and ops is not None:
            _, ups, downs = zip(*map(_parts, self._stages[stage]), strict=True)
            if any(factor.requires_grad for factor in (*ups, *downs)):
                return _StageMerge.apply(self, stage, ops, *ups, *downs)
        self._fill(stage, ops)
        return self._views

    def merge(self, stage: int) -> None:
        """Fill the scratch with the weights of `stage`, counted from 0: one launch on a GPU.

        Raises:
            IndexError: no such stage.
            RuntimeError: within the context of another stage, whose layers read the scratch.
            ValueError: the stages no longer share their layers.
        """
        if self._active not in (None, stage):
            raise RuntimeError(
                f"StageWeights: stage {stage} cannot be merged while stage {self._active} runs; leave its "
                "context first"
            )
        self._prepare(stage)
        self._fill(stage, stage_ops(self.scratch))

    @contextmanager
    def stage(self, stage: int) -> Iterator[None]:
        """Merge `stage` and let its layers read the scratch, in this thread, until the context ends.

        While another thread runs a stage, the layers merge W for themselves, as they do without a context.

        Raises:
            IndexError: no such stage.
            RuntimeError: within the context of another stage.
            ValueError: the stages no longer share their layers.
        """
        owner = threading.get_ident()
        if self._owner == owner:
            raise RuntimeError(f"StageWeights: stage {self._active} runs already; leave its context first")
        if not self._lock.acquire(blocking=False):
            yield
            return
        layers: list[FusedLoRAConv2d] = []
        try:
            self._owner = owner
            self._prepare(stage)
            self._follow_stream()
            merged = self._merged(stage)
            layers, self._active = self._stages[stage], stage
            for layer, weight in zip(layers, merged, strict=True):
                layer.__dict__["_stage_weight"] = (owner, weight)
            yield
        finally:
            for layer in layers:
                layer.__dict__.pop("_stage_weight", None)
            self._active = self._owner = None
            self._lock.release()

    def _follow_stream(self) -> None:
        """Merge only after what other streams still read from the scratch."""
        if not self.scratch.is_cuda or torch.cuda.is_current_stream_capturing():
            return
        stream = torch.cuda.current_stream(self.scratch.device)
        if self._stream not in (None, stream):
            stream.wait_stream(self._stream)
        self._stream = stream
