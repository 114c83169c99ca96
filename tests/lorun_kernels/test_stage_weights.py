"""StageWeights on CPU: the same results, and Parameters that stay what they were."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorun_kernels import FusedLoRAConv2d, StageWeights, use_backend
from lorun_kernels.lent_weights import lent_weight
from tests.lorun_kernels.residual_stages import run


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


def adapters(stages):
    return [p for name, p in stages.named_parameters() if "lora_" in name]


def lent(stage, dtype=torch.float32):
    """What this thread's calls of the stage's layers would read in place of merging."""
    return [lent_weight(layer, torch.empty(0, dtype=dtype)) for layer in stage]


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


def test_an_optimizer_made_before_keeps_training_the_adapters():
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


def test_no_parameter_moves_and_loaded_adapters_are_followed(tmp_path):
    stages, image = make_stages(), torch.randn(1, 3, 5, 5)
    memory = [(p.data_ptr(), p.untyped_storage().nbytes()) for p in stages.parameters()]
    weights = StageWeights(stages)
    run(stages, image, weights)
    other = {name: torch.randn_like(value) for name, value in stages.state_dict().items()}
    stages.load_state_dict(other)
    assert [(p.data_ptr(), p.untyped_storage().nbytes()) for p in stages.parameters()] == memory
    expected = run(copy.deepcopy(stages), image)
    assert torch.equal(run(stages, image, weights), expected)
    save_file({name: value for name, value in stages.state_dict().items() if "lora" in name}, tmp_path / "a")
    assert torch.equal(load_file(tmp_path / "a")["2.1.lora_down"], stages[2][1].lora_down)


def test_parameters_that_moved_are_followed():
    stages = make_stages()
    weights = StageWeights(stages)
    run(stages, torch.randn(1, 3, 5, 5), weights)
    stages.double()
    image = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    assert torch.equal(run(stages, image, weights), run(stages, image))
    with weights.stage(0):
        assert all(weight.dtype == torch.float64 for weight in lent(stages[0], torch.float64))


def test_a_plan_is_not_taken_for_a_weight_that_came_back_in_another_layout():
    stages = make_stages()
    weights = StageWeights(stages)
    before = weights._plan_for(0)
    assert weights._plan_for(1) is before
    for layer in stages[0]:
        # As if the allocator had given the old address again.
        base = layer.base_weight
        base.data = base.data.as_strided(base.shape, base.flatten(1)[0].stride() * 4)
    assert [layer.base_weight.data_ptr() for layer in stages[0]] == [row[0] for row in before.table.tolist()]
    assert weights._plan_for(1) is not before


def test_the_scratch_is_one_stage_however_many_there_are():
    expected = sum(layer.base_weight.nbytes for layer in make_stages(1)[0])
    for count in (1, 9):
        stages = make_stages(count)
        with StageWeights(stages).stage(0):
            storages = {weight.untyped_storage().data_ptr() for weight in lent(stages[0])}
            assert len(storages) == 1 and lent(stages[0])[0].untyped_storage().nbytes() == expected


def test_nothing_merged_is_kept_for_backward():
    stages = make_stages()
    weights = StageWeights(stages)
    kept, scratches = set(), set()
    image = torch.randn(1, 3, 5, 5)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.add(t.untyped_storage().data_ptr()) or t, lambda t: t
    ):
        for number, stage in enumerate(stages):
            with weights.stage(number):
                image = image + stage(image)
                scratches.add(lent(stage)[0].untyped_storage().data_ptr())
    assert kept and scratches and not kept & scratches


def test_under_autocast_the_scratch_has_its_type():
    stages, image = make_stages(), torch.randn(1, 3, 5, 5)
    for weights in (StageWeights(stages), StageWeights(stages, dtype=torch.bfloat16)):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(run(stages, image, weights), run(stages, image))
            with weights.stage(0):
                assert all(weight.dtype == torch.bfloat16 for weight in lent(stages[0]))


def test_a_layer_that_is_called_in_another_type_merges_for_itself():
    stages, image = make_stages(), torch.randn(1, 3, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        weights = StageWeights(stages, dtype=torch.float32)
        assert torch.equal(run(stages, image, weights), run(stages, image))
        with StageWeights(stages).stage(0), torch.autocast("cpu", enabled=False):
            found = stages[0](image)
    assert torch.equal(found, stages[0](image))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_have_the_layout_that_they_have_outside(layout):
    stages = make_stages().to(memory_format=layout)
    weights = StageWeights(stages)
    image = torch.randn(2, 3, 6, 7).to(memory_format=layout)
    expected = stages[0][0](image)
    with weights.stage(0):
        assert stages[0][0](image).stride() == expected.stride()


def test_inference_mode_leaves_parameters_that_train():
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
    run(stages, image, weights)
    for stage in stages:
        stage[0].scaling = 3.0
    assert torch.equal(run(stages, image, weights), run(stages, image))
    stages[1][0].weight = nn.Parameter(torch.randn(5, 3, 3, 3))
    with pytest.raises(ValueError, match="layer 0 of stage 1 must share its weight"), weights.stage(1):
        pass


def test_a_running_stage_keeps_its_weights_while_others_run():
    stages, image = make_stages(), torch.randn(1, 3, 5, 5)
    weights = StageWeights(stages)
    first, second = stages[0](image), stages[1](image)
    with weights.stage(0):
        with weights.stage(1):
            assert torch.equal(stages[1](image), second)
        with weights.stage(0):
            pass
        assert torch.equal(stages[0](image), first)


def test_contexts_need_not_end_in_the_order_in_which_they_began():
    stages, image = make_stages(), torch.randn(1, 3, 5, 5)
    weights = StageWeights(stages)
    expected = stages[0](image)
    first, second, again = weights.stage(0), weights.stage(1), weights.stage(0)
    for context in (first, second, again):
        context.__enter__()
    for context in (first, again, second):
        assert torch.equal(stages[0](image), expected)
        context.__exit__(None, None, None)
    assert lent(stages[0]) == lent(stages[1]) == [None] * 3


def test_a_stage_is_lent_to_the_thread_that_opened_it():
    stages, image = make_stages(), torch.randn(1, 3, 5, 5)
    expected = run(stages, image).detach()
    weights, barrier = StageWeights(stages), threading.Barrier(2)
    found, seen = [], []

    def work(order):
        for _ in range(10):
            x = image
            for number in range(3):
                barrier.wait()
                with weights.stage(number):
                    # Both threads are inside, each with memory of its own, and the other's is out of sight.
                    barrier.wait()
                    seen.append(lent(stages[number])[0].data_ptr())
                    barrier.wait()
                    x = x + stages[number](x)
            found.append(x.detach())

    threads = [threading.Thread(target=work, args=(order,)) for order in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 20 and all(torch.equal(x, expected) for x in found)
    assert all(a != b for a, b in zip(seen[::2], seen[1::2], strict=True))
    with weights.stage(0):
        others = []
        thread = threading.Thread(target=lambda: others.extend(lent(stages[0])))
        thread.start()
        thread.join(60)
        assert others == [None] * 3 and None not in lent(stages[0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_is_recomputed_without_the_stage(reentrant):
    stages, image = make_stages(), torch.randn(1, 3, 5, 5, requires_grad=True)
    weights = StageWeights(stages)

    def checkpointed(image):
        for number, stage in enumerate(stages):
            with weights.stage(number):
                image = image + checkpoint(stage, image, use_reentrant=reentrant)
        return image

    inputs = [image, *adapters(stages)]
    run(stages, image).square().sum().backward()
    expected = [p.grad.clone() for p in inputs]
    for p in inputs:
        p.grad = None
    checkpointed(image).square().sum().backward()
    for p, definition in zip(inputs, expected, strict=True):
        torch.testing.assert_close(p.grad, definition)


def test_a_copy_made_in_a_stage_is_not_of_that_stage():
    stages, image = make_stages(), torch.randn(1, 3, 5, 5)
    expected = stages[0](image)
    with StageWeights(stages).stage(0):
        twin = copy.deepcopy(stages[0])
        assert lent(twin) == [None] * 3
    torch.testing.assert_close(twin(image), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_follows_the_layers_that_were_copied_with_it(copied):
    stages, image = make_stages(), torch.randn(1, 3, 5, 5)
    weights = StageWeights(stages)
    run(stages, image, weights)
    twins, twin_weights = copied((stages, weights))
    for parameter in twins.parameters():
        nn.init.normal_(parameter)
    assert torch.equal(run(twins, image, twin_weights), run(twins, image))
    assert torch.equal(run(stages, image, weights), run(stages, image))
    with twin_weights.stage(0):
        assert None not in lent(twins[0]) and lent(stages[0]) == [None] * 3


def test_layers_are_released_at_the_end_and_after_an_error():
    stages = make_stages()
    weights = StageWeights(stages)
    with pytest.raises(KeyError), weights.stage(1):
        assert None not in lent(stages[1])
        raise KeyError
    assert all(lent(stage) == [None] * 3 for stage in stages)


def test_a_stage_compiles_to_one_graph():
    stages, image = make_stages(), torch.randn(1, 3, 5, 5)
    weights = StageWeights(stages)
    with weights.stage(1):
        compiled = torch.compile(stages[1], fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(image), stages[1](image))


def test_on_a_cpu_it_does_not_pay():
    stages, image = make_stages(), torch.randn(1, 3, 5, 5)
    weights = StageWeights(stages)
    for backend in ("aten", "reference"):
        with use_backend(backend):
            assert not weights.pays()
    assert not weights.pays()
    with weights.stage(0, only_if_it_pays=True):
        assert lent(stages[0]) == [None] * 3
        stages[0](image)


def test_stages_without_adapted_convolutions_have_no_stage_weights():
    assert StageWeights.of([nn.Linear(2, 2)]) is None
    assert isinstance(StageWeights.of(make_stages()), StageWeights)


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
        StageWeights(stages).stage(3)
    parametrized = copy.deepcopy(stages)
    nn.utils.parametrizations.orthogonal(parametrized[0][0], "lora_up")
    with pytest.raises(ValueError, match="to be plain Parameters"):
        StageWeights(parametrized)


def test_the_op_refuses_a_merged_weight_of_another_type():
    layer, image = make_stages(1)[0][0], torch.randn(1, 3, 5, 5)
    options = (
        layer.stride,
        layer.padding,
        layer.dilation,
        1,
        1.0,
        "reshape",
        None,
        None,
        "none",
        0.01,
        "aten",
    )
    args = (image, layer.base_weight, layer.lora_up, layer.lora_down, layer.bias, *options)
    with pytest.raises(ValueError, match="give StageWeights the dtype"):
        torch.ops.lorun.lora_conv2d(*args, layer.merged_weight().bfloat16())
