"""The adapters of a stage of a K-stage network, merged at once, and differentiated in one launch."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lorun_kernels.backends import StageOps, layers_merge_by_themselves, stage_ops
from lorun_kernels.lent_weights import called_dtype, lend
from lorun_kernels.lora_conv_layer import FusedLoRAConv2d
from lorun_kernels.lora_merge import merge_lora

# What a stage takes in place of one merge per layer: to join all `lora_up`, to join all `lora_down`, to
# merge.
LAUNCHES = 3

Stages = Sequence[nn.Module] | nn.ModuleList
Parts = tuple[Tensor, Tensor, Tensor]


def _parts(layer: FusedLoRAConv2d) -> Parts:
    """Base, up and down, without nn.Module's slow attributes: every stage looks at all of them.

    Raises:
        ValueError: one of them is not a plain tensor with memory of its own (it is computed, or sharded).
    """
    parameters = layer._parameters
    parts = tuple(parameters.get(name) for name in ("weight", "lora_up", "lora_down"))
    if any(type(part) not in (nn.Parameter, Tensor) for part in parts):
        raise ValueError(
            "StageWeights: expected weight, lora_up and lora_down to be plain Parameters of every layer, got "
            f"{[type(part).__name__ for part in parts]}; undo what computes or shards them"
        )
    return parts  # type: ignore[return-value]


def _identity(layer: FusedLoRAConv2d) -> tuple:
    """What a plan holds of a layer besides values.

    An address alone does not say it: moved away and back in another layout, a weight can lie where it lay.
    """
    weight, up, down = _parts(layer)
    return weight.data_ptr(), weight.stride(), weight.dtype, up.numel(), down.numel(), layer.scaling


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
            same = layer._parameters.get("weight") is first._parameters.get("weight")
            same = same and layer.scaling == first.scaling
            if not same or layer._factors()[0].shape != first._factors()[0].shape or layer.form != first.form:
                raise ValueError(
                    f"StageWeights: layer {index} of stage {number} must share its weight with stage 0 and "
                    "have the same rank, form and scaling; make the stages with FusedLoRAConv2d.from_conv"
                )
    every_layer = [layer for layers in stages for layer in layers]
    for weight, up, down in map(_parts, every_layer):
        if up.dim() != 2 or down.dim() != 2 or up.shape[0] * down.shape[1] != weight.numel():
            raise ValueError(
                f"StageWeights: expected lora_up and lora_down to be factors of {list(weight.shape)}, "
                f"got {list(up.shape)} and {list(down.shape)}; undo what shards or flattens them"
            )
    kinds = {(tensor.dtype, tensor.device) for layer in every_layer for tensor in _parts(layer)}
    if len(kinds) > 1:
        raise ValueError(f"StageWeights: all layers must have one dtype and device, got {kinds}")
    if len({id(factor) for layer in every_layer for factor in _parts(layer)[1:]}) < 2 * len(every_layer):
        raise ValueError("StageWeights: two layers share an adapter; every stage must have its own")


@dataclass(frozen=True)
class _Plan:
    """What all stages have in common, and where their weights lie in a scratch."""

    identity: list[tuple]
    # What the grouped kernel reads of each layer, 16 numbers a row: see `lora_merge_stage`.
    table: Tensor
    elements: int
    # Each layer's weight in the scratch, in channels_last: its shape, strides and offset.
    places: Sequence[tuple[torch.Size, tuple[int, ...], int]]
    most_elements: int
    most_rows_and_columns: tuple[int, int]


def _make_plan(layers: list[FusedLoRAConv2d], identity: list[tuple]) -> _Plan:
    all_parts = [_parts(layer) for layer in layers]
    rows, places, offsets = [], [], [0, 0, 0]
    for layer, (weight, up, down) in zip(layers, all_parts, strict=True):
        scaling = struct.unpack("<i", struct.pack("<f", layer.scaling))[0]
        rows.append(
            [weight.data_ptr(), *weight.stride(), down.shape[0], down.shape[1], *weight.shape, *offsets]
            + [scaling, 0]
        )
        _, channels, kernel_h, kernel_w = weight.shape
        strides = (channels * kernel_h * kernel_w, 1, kernel_w * channels, channels)
        places.append((weight.shape, strides, offsets[2]))
        for index, part in enumerate((up, down, weight)):
            offsets[index] += part.numel()
    return _Plan(
        identity=identity,
        table=torch.tensor(rows, dtype=torch.int64).to(all_parts[0][0].device),
        elements=offsets[2],
        places=places,
        most_elements=max(weight.numel() for weight, _, _ in all_parts),
        most_rows_and_columns=(
            max(up.shape[0] for _, up, _ in all_parts),
            max(down.shape[1] for _, _, down in all_parts),
        ),
    )


def _new_parts(plan: _Plan, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A scratch for the weights of one stage, and each layer's part of it."""
    scratch = torch.empty(plan.elements, device=plan.table.device, dtype=dtype)
    return scratch, tuple(scratch.as_strided(*place) for place in plan.places)


@torch.no_grad()
def _merged_one_by_one(plan: _Plan, dtype: torch.dtype, layers: list[FusedLoRAConv2d]) -> tuple[Tensor, ...]:
    _, parts = _new_parts(plan, dtype)
    for layer, part in zip(layers, parts, strict=True):
        part.copy_(merge_lora(*_parts(layer), layer.scaling, layer.form))
    return parts


@torch.no_grad()
def _merged_at_once(
    plan: _Plan, dtype: torch.dtype, ops: StageOps, ups: Sequence[Tensor], downs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    scratch, parts = _new_parts(plan, dtype)
    merge, _ = ops
    merge(plan.table, _joined(ups), _joined(downs), plan.most_elements, scratch)
    return parts


def _joined(factors: Sequence[Tensor]) -> Tensor:
    # torch.cat of flat views, all of it in C++: half the time.
    return torch._utils._flatten_dense_tensors(factors)


class _StageMerge(torch.autograd.Function):
    """The merge of a stage: from all `lora_up`, then all `lora_down`, to the weights in a new scratch."""

    @staticmethod
    def forward(ctx, plan, dtype, ops, *factors):
        ctx.set_materialize_grads(False)
        ctx.plan, (_, ctx.backward_op) = plan, ops
        # Not by save_for_backward: a checkpoint would miss them in a recomputation that merges by layers. The
        # layers do save their factors, and so notice one that has changed.
        ctx.factors = factors
        half = len(factors) // 2
        merged = _merged_at_once(plan, dtype, ops, factors[:half], factors[half:])
        learns = [any(needed) for needed in _pairs(ctx.needs_input_grad[3:])]
        ctx.mark_non_differentiable(*(w for w, learn in zip(merged, learns, strict=True) if not learn))
        return merged

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        some = next((grad for grad in grads if grad is not None), None)
        if some is None:
            # Layers on another backend have summed their own.
            return (None,) * len(ctx.needs_input_grad)
        plan, factors = ctx.plan, ctx.factors
        all_ups, all_downs = factors[: len(grads)], factors[len(grads) :]
        ups, downs = _joined(all_ups), _joined(all_downs)
        grad_ups, grad_downs = torch.empty_like(ups), torch.empty_like(downs)
        weight_grads = [
            some.new_zeros(shape.numel()) if grad is None else grad.permute(0, 2, 3, 1).flatten()
            for grad, (shape, _, _) in zip(grads, plan.places, strict=True)
        ]
        most = plan.most_rows_and_columns
        ctx.backward_op(plan.table, ups, downs, *most, torch.cat(weight_grads), grad_ups, grad_downs)
        parts = _split_like(grad_ups, all_ups) + _split_like(grad_downs, all_downs)
        given = [grad is not None for grad in grads] * 2
        wanted = zip(ctx.needs_input_grad[3:], given, parts, strict=True)
        return None, None, None, *(part if needed and there else None for needed, there, part in wanted)


def _pairs(values: Sequence) -> zip:
    """For each layer, what belongs to its up and to its down, in a sequence for all ups, then all downs."""
    half = len(values) // 2
    return zip(values[:half], values[half:], strict=True)


def _split_like(joined: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    parts = joined.split([factor.numel() for factor in factors])
    return [part.view(factor.shape) for part, factor in zip(parts, factors, strict=True)]


class StageWeights:
    """The adapters of a K-stage network, merged stage by stage into one scratch that a stage's layers read.

    A network that shares one denoiser merges a hundred small weights in a pass, one launch each. Here a stage
    takes three launches, however many layers it has: two join its factors, and one merges them all.

        stages = lk.StageWeights(network.denoisers)
        for k, denoiser in enumerate(network.denoisers):
            with stages.stage(k):
                x = denoiser(x, noise_level)

    Results are those of the layers alone. Nothing moves, and nothing is kept: every `lora_up` and `lora_down`
    stays the Parameter it was, and the scratch, the memory of one stage's weights, is returned when the stage
    ends, so that any number of threads and CUDA streams may run stages at a time. A stage lends its weights
    to the thread that opened it. A layer merges for itself if another thread calls it, such as the one of
    autograd that recomputes a checkpoint, if it is called in another dtype than that of the scratch, and
    inside ``torch.compile``.

    In training a layer's backward pass merges W for itself. On a GPU the gradients of a stage's adapters are
    computed in one launch, the same bits every time, from d W of its layers, which exists until then, in the
    scratch's dtype, and once more side by side; their `.grad` are parts of one tensor. Layers on the "cuda"
    or "triton" backend form no d W and sum their own. While a stage's context is open, no parameter may
    change: the scratch would not follow.

    A CUDA graph that was captured around a stage replays with the values that the adapters then have. After
    ``.to()`` or another scaling, open a stage once and capture again.

    Args:
        stages: K modules whose :class:`FusedLoRAConv2d` layers, in order, share their base weights.
            Linear layers and full additive weights are left as they are.
        dtype: the dtype of the scratch, which should be the one that the layers are called in; default: that
            of ``torch.autocast`` if it is enabled, else that of the parameters.

    Raises:
        ValueError: stages that do not share their layers, or share an adapter.
    """

    def __init__(self, stages: Stages, dtype: torch.dtype | None = None) -> None:
        self._stages = [_adapted_layers(stage) for stage in stages]
        self._dtype = dtype
        self._plan: _Plan | None = None
        _check_alike(self._stages)

    @classmethod
    def of(cls, stages: Stages, dtype: torch.dtype | None = None) -> StageWeights | None:
        """StageWeights of these stages, or None if they have no layers to merge at once."""
        try:
            return cls(stages, dtype)
        except ValueError:
            return None

    def __getstate__(self) -> dict:
        # The plan holds addresses, which are not those of a copy.
        return self.__dict__ | {"_plan": None}

    def stage(self, stage: int, only_if_it_pays: bool = False) -> AbstractContextManager[None]:
        """A context that merges a stage when it begins, and in which the stage's layers read their merged W.

        Args:
            stage: which one, counted from 0.
            only_if_it_pays: whether the context does nothing, so that layers merge for themselves, if
                :meth:`pays` says so, and in place of raising a ValueError.

        Raises:
            IndexError: no such stage.
            ValueError: the stages no longer share their layers, or a CUDA graph is being captured and no
                stage was opened before, with the parameters where they now are.
        """
        if not 0 <= stage < len(self._stages):
            raise IndexError(f"StageWeights: expected a stage from 0 to {len(self._stages) - 1}, got {stage}")
        if only_if_it_pays and not self.pays():
            return nullcontext()
        return self._opened(stage, only_if_it_pays)

    def pays(self) -> bool:
        """Whether merging a stage at once takes fewer launches, here and now, than merging layer by layer.

        It does on a GPU, if the layers run through ATen (the kernels of the other backends merge W on the
        chip) and more than three of them have their weight in channels_last, as the scratch has it. It does
        not inside ``torch.compile``, ``torch.export``, ``torch.jit.trace``, a ``torch.func`` transform or a
        ``TorchDispatchMode``: what records a network sees each layer by itself.
        """
        if torch.compiler.is_compiling() or not layers_merge_by_themselves():
            return False
        weights = [layer._parameters.get("weight") for layer in self._stages[0]]
        first = weights[0]
        if first is None or stage_ops(first, self._scratch_dtype(first)) is None or _is_recorded():
            return False
        # A layer of another layout would copy its part of the scratch, a launch as its own merge is.
        in_place = (w is not None and w.is_contiguous(memory_format=torch.channels_last) for w in weights)
        return sum(in_place) > LAUNCHES

    @property
    def scratch_nbytes(self) -> int:
        """The size of a running stage's merged weights in bytes, in the dtype that they would have now."""
        weights = [_parts(layer)[0] for layer in self._stages[0]]
        return sum(weight.numel() for weight in weights) * self._scratch_dtype(weights[0]).itemsize

    def _scratch_dtype(self, weight: Tensor) -> torch.dtype:
        return self._dtype or called_dtype(weight)

    @contextmanager
    def _opened(self, stage: int, or_nothing: bool) -> Iterator[None]:
        with lend(self._merged_or_nothing(stage) if or_nothing else self._merged(stage)):
            yield

    def _merged_or_nothing(self, stage: int) -> dict[nn.Module, Tensor]:
        try:
            return self._merged(stage)
        except ValueError:
            return {}

    def _plan_for(self, stage: int) -> _Plan:
        """The plan, made again if parameters have moved since it was made."""
        plan = self._plan
        layers = self._stages[stage]
        identity = [_identity(layer) for layer in layers]
        if plan is None or plan.identity != identity:
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                raise ValueError(
                    "StageWeights: parameters have moved, or no stage was opened yet, and a CUDA graph is "
                    "being captured; open a stage once, then capture"
                )
            _check_alike(self._stages)
            self._plan = plan = _make_plan(layers, identity)
        return plan

    def _merged(self, stage: int) -> dict[nn.Module, Tensor]:
        """The merged weights of a stage's layers; differentiable if one launch merges them."""
        plan, layers = self._plan_for(stage), self._stages[stage]
        weights, ups, downs = zip(*map(_parts, layers), strict=True)
        if len({(factor.dtype, factor.device) for factor in (weights[0], *ups, *downs)}) > 1:
            _check_alike(self._stages)
        dtype = self._scratch_dtype(weights[0])
        ops = stage_ops(weights[0], dtype)
        if ops is None:
            merged = _merged_one_by_one(plan, dtype, layers)
        elif torch.is_grad_enabled() and any(factor.requires_grad for factor in (*ups, *downs)):
            merged = _StageMerge.apply(plan, dtype, ops, *ups, *downs)
        else:
            merged = _merged_at_once(plan, dtype, ops, ups, downs)
        return dict(zip(layers, merged, strict=True))


def _adapted_layers(stage: nn.Module) -> list[FusedLoRAConv2d]:
    layers = [layer for layer in stage.modules() if isinstance(layer, FusedLoRAConv2d)]
    return [layer for layer in layers if layer.rank is not None]


def _is_recorded() -> bool:
    """Whether something other than autograd looks at the ops that run."""
    return (
        torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )
