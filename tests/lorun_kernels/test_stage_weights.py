"""StageWeights on CPU: the same results from one scratch, and Parameters that stay what they were."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lorun_kernels import FusedLoRAConv2d, StageWeights


def make_stages(count=3, dtype=torch.float32, **options):
    """`count` stages of three adapted layers on one base, each with an adapter of its own."""
    torch.manual_seed(0)
    base = [nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 3, 1)]
    base = [conv.to(dtype, memory_format=torch.channels_last) for conv in base]
    stages = nn.ModuleList(
        nn.Sequential(*(FusedLoRAConv2d.from_conv(conv, rank=1, **options) for conv in base))
        for _ in range(count)
    )
    for name, parameter in stages.named_parameters():
        if name.endswith("lora_up"):
            nn.init.normal_(parameter)
    return stages


def run(stages, image, weights=None):
    for number, stage in enumerate(stages):
        if weights is None:
            image = image + stage(image)
        else:
            with weights.stage(number):
                image = image + stage(image)
    return image


def adapters(stages):
    return [p for name, p in stages.named_parameters() if "lora_" in name]


@pytest.mark.parametrize("form", ["reshape", "factored"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_results_are_the_same_bit_for_bit(dtype, form):
    stages = make_stages(dtype=dtype, form=form, scaling=0.5)
    image = torch.randn(2, 3, 6, 7).to(dtype, memory_format=torch.channels_last)
    expected = run(stages, image)
    assert torch.equal(run(stages, image, StageWeights(stages)), expected)


def test_gradients_are_the_same_and_reach_the_same_parameters():
    stages = make_stages()
    image = torch.randn(2, 3, 6, 7).to(memory_format=torch.channels_last)
    expected = torch.autograd.grad(run(stages, image).square().sum(), adapters(stages))
    weights = StageWeights(stages)
    found = torch.autograd.grad(run(stages, image, weights).square().sum(), adapters(stages))
    for value, definition in zip(found, expected, strict=True):
        torch.testing.assert_close(value, definition)


def test_an_optimizer_made_before_keeps_training_the_stacked_adapters():
    stages, twin = make_stages(), make_stages()
    image = torch.randn(2, 3, 6, 7)
    optimizers = [torch.optim.Adam(adapters(net), 0.1) for net in (stages, twin)]
    weights = StageWeights(stages)
    for _ in range(3):
        for net, optimizer, staged in zip((stages, twin), optimizers, (weights, None), strict=True):
            optimizer.zero_grad()
            run(net, image, staged).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(run(stages, image, weights), run(twin, image))
    assert torch.equal(torch.cat([p.flatten() for p in adapters(stages[1])[::2]]), weights.ups[1])


def test_loading_other_adapters_writes_into_the_stack(tmp_path):
    stages, image = make_stages(), torch.randn(1, 3, 5, 5)
    weights = StageWeights(stages)
    addresses = [p.data_ptr() for p in stages.parameters()]
    other = {name: torch.randn_like(value) for name, value in stages.state_dict().items()}
    stages.load_state_dict(other)
    assert [p.data_ptr() for p in stages.parameters()] == addresses
    expected = run(copy.deepcopy(stages), image)
    assert torch.equal(run(stages, image, weights), expected)
    save_file({name: value for name, value in stages.state_dict().items() if "lora" in name}, tmp_path / "a")
    assert torch.equal(load_file(tmp_path / "a")["2.1.lora_down"], stages[2][1].lora_down)


def test_parameters_that_moved_are_stacked_again():
    stages = make_stages()
    weights = StageWeights(stages)
    stages.double()
    image = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    assert torch.equal(run(stages, image, weights), run(stages, image))
    assert weights.ups.dtype == weights.scratch.dtype == torch.float64


def test_the_scratch_is_one_stage_however_many_there_are():
    sizes = {StageWeights(make_stages(count)).scratch.numel() for count in (1, 9)}
    assert sizes == {sum(layer.weight.numel() for layer in make_stages(1)[0])}


def test_nothing_merged_is_kept_for_backward():
    stages = make_stages()
    weights = StageWeights(stages)
    kept = set()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.add(t.untyped_storage().data_ptr()) or t, lambda t: t
    ):
        run(stages, torch.randn(1, 3, 5, 5), weights)
    assert kept and weights.scratch.untyped_storage().data_ptr() not in kept


def test_under_autocast_the_scratch_has_its_type():
    stages, image = make_stages(), torch.randn(1, 3, 5, 5)
    weights = StageWeights(stages, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(stages, image, weights), run(stages, image))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_have_the_layout_that_they_have_outside(layout):
    stages = make_stages().to(memory_format=layout)
    weights = StageWeights(stages)
    image = torch.randn(2, 3, 6, 7).to(memory_format=layout)
    expected = stages[0][0](image)
    with weights.stage(0):
        assert stages[0][0](image).stride() == expected.stride()


def test_stacking_in_inference_mode_leaves_parameters_that_train():
    stages, image = make_stages(), torch.randn(1, 3, 5, 5)
    with torch.inference_mode():
        weights = StageWeights(stages)
    stages.double()
    with torch.inference_mode(), weights.stage(0):
        stages[0](image.double())
    run(stages, image.double(), weights).sum().backward()
    assert all(p.grad is not None and not p.is_inference() for p in adapters(stages))


def test_a_scaling_that_changes_is_followed():
    stages, image = make_stages(), torch.randn(1, 3, 5, 5)
    weights = StageWeights(stages)
    for stage in stages:
        stage[0].scaling = 3.0
    assert torch.equal(run(stages, image, weights), run(stages, image))
    stages[1][0].weight = nn.Parameter(torch.randn(5, 3, 3, 3))
    with pytest.raises(ValueError, match="layer 0 of stage 1 must share its weight"):
        weights.merge(1)


def test_the_scratch_is_not_changed_under_a_running_stage():
    stages = make_stages()
    weights = StageWeights(stages)
    with weights.stage(0):
        weights.merge(0)
        with pytest.raises(RuntimeError, match="stage 1 cannot be merged while stage 0 runs"):
            weights.merge(1)
        with pytest.raises(RuntimeError, match="stage 0 runs already"), weights.stage(0):
            pass
    with weights.stage(1):
        pass


def test_a_copy_made_in_a_stage_is_not_of_that_stage():
    stages, image = make_stages(), torch.randn(1, 3, 5, 5)
    expected = stages[0](image)
    with StageWeights(stages).stage(0):
        twin = copy.deepcopy(stages[0])
    assert all(layer.stage_weight is None for layer in twin)
    torch.testing.assert_close(twin(image), expected)


def test_layers_are_released_at_the_end_and_after_an_error():
    stages = make_stages()
    weights = StageWeights(stages)
    with pytest.raises(KeyError), weights.stage(1):
        assert stages[1][0].stage_weight is not None
        raise KeyError
    assert all(layer.stage_weight is None for stage in stages for layer in stage)


def test_a_stage_compiles_to_one_graph():
    stages, image = make_stages(), torch.randn(1, 3, 5, 5)
    weights = StageWeights(stages)
    weights.merge(1)
    with weights.stage(1):
        compiled = torch.compile(stages[1], fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(image), stages[1](image))


def test_refuses_by_name():
    stages = make_stages()
    with pytest.raises(ValueError, match="at least one stage with a FusedLoRAConv2d"):
        StageWeights([nn.Conv2d(1, 1, 1)])
    with pytest.raises(ValueError, match="stage 1 has 1 adapted convolutions, stage 0 has 3"):
        StageWeights([stages[0], stages[1][0]])
    with pytest.raises(ValueError, match="layer 0 of stage 1 must share its weight with stage 0"):
        StageWeights([stages[0], make_stages(1)[0]])
    with pytest.raises(ValueError, match="two layers share an adapter"):
        StageWeights([stages[0], stages[0]])
    with pytest.raises(IndexError, match="expected a stage from 0 to 2, got 3"):
        StageWeights(stages).merge(3)
    weights = StageWeights(stages)
    with weights.stage(0), pytest.raises(ValueError, match="give StageWeights the dtype"):
        stages[0].bfloat16()(torch.randn(1, 3, 5, 5).bfloat16())
