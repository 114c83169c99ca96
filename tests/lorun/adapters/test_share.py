"""share_stages on seven networks of different style."""

import copy
import io
import socket
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import lorun
from lorun_kernels import adapted_weights, shared_groups
from tests.lorun.adapters.architectures import ARCHITECTURES
from tests.lorun.adapters.shared_networks import (
    IMAGE,
    made,
    result,
    shared,
    small_network,
    train_adapters,
    with_the_weights_of_stage_one,
)

EVERY = pytest.mark.parametrize("name", ARCHITECTURES)


@EVERY
def test_before_training_the_network_equals_its_base_bit_for_bit(name):
    assert torch.equal(result(shared(name), name), result(with_the_weights_of_stage_one(name), name))


@EVERY
def test_every_adapter_of_every_stage_gets_a_gradient(name):
    model = shared(name)
    result(model, name).square().sum().backward()
    weights = adapted_weights(model)
    assert len(weights) >= 3 * len(ARCHITECTURES[name].stages_of(model)[:1])
    assert not [n for n, w in weights.items() if w.tensors[0].grad is None or not w.tensors[0].grad.any()]


@EVERY
def test_the_base_stays_put_while_adapters_and_what_is_small_train(name):
    model = shared(name).train()
    base = {id(s.parameter): (s.parameter, s.parameter.detach().clone()) for s in shared_groups(model)}
    own = {
        f"{k}.{n}": stage.get_parameter(n)
        for k, stage in enumerate(ARCHITECTURES[name].stages_of(model))
        for n in ARCHITECTURES[name].per_stage
    }
    before = {n: p.detach().clone() for n, p in own.items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        loss = (result(model, name) - 0.3).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.equal(p, was) and not p.requires_grad for p, was in base.values())
    assert len({id(p) for p in own.values()}) == len(own)
    assert [n for n, p in own.items() if torch.equal(p, before[n])] == []


def test_running_statistics_are_each_stages_own():
    model = shared("hqs").train()
    stages = ARCHITECTURES["hqs"].stages_of(model)
    before = [stage.entry_norm.running_mean.clone() for stage in stages]
    result(model, "hqs")
    after = [stage.entry_norm.running_mean for stage in stages]
    assert len({t.data_ptr() for t in after}) == len(stages)
    assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def kept_for_backward(model, name):
    """Bytes that autograd keeps beside parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    seen, alive = {}, []

    def pack(tensor):
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result(model, name)
    return sum(seen.values())


@EVERY
def test_no_more_is_kept_for_backward_than_by_the_original(name):
    assert kept_for_backward(shared(name), name) <= kept_for_backward(made(name), name)


@EVERY
def test_the_state_on_disk_is_base_and_adapters(name):
    model = shared(name)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    tensors = [*model.parameters(), *model.buffers()]
    held = sum(t.numel() * t.element_size() for t in tensors)
    # A file has some 200 bytes for each name of a tensor, and its storages begin at multiples of 64.
    assert held < file.tell() < held + 500 * len(model.state_dict()) + 2000


@EVERY
def test_the_plain_network_is_that_of_the_original_code(name):
    model = train_adapters(shared(name))
    plain, original = lorun.to_plain(model), made(name)
    # torch makes a class of its own for each parametrized layer.
    kinds, expected = ([type(m).__name__ for m in net.modules()] for net in (plain, original))
    assert kinds == expected
    original.load_state_dict(lorun.merge_all(model), strict=True)
    for other in (plain, original):
        torch.testing.assert_close(result(other, name), result(model, name), atol=1e-6, rtol=1e-6)
    assert not shared_groups(plain)


@EVERY
def test_it_compiles_to_one_graph_if_the_original_does(name):
    model = train_adapters(shared(name), 0.02)
    torch._dynamo.reset()
    try:
        result(torch.compile(made(name), backend="eager", fullgraph=True), name)
    except Exception:
        pytest.skip("the original network does not compile to one graph")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(result(compiled, name), result(model, name))


@EVERY
def test_copies_and_threads_give_the_same(name):
    model = train_adapters(shared(name), 0.02)
    expected = result(model, name)
    assert torch.equal(result(copy.deepcopy(model), name), expected)
    found = []
    threads = [threading.Thread(target=lambda: found.append(result(model, name))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(torch.equal(out, expected) for out in found)


def test_a_checkpointed_stage_has_the_same_gradients():
    model = train_adapters(lorun.share_stages(small_network(), "stages", gamma=50))
    trained = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(model(IMAGE).square().sum(), trained)
    x = IMAGE
    for stage in model.stages:
        x = checkpoint(stage, x, use_reentrant=False)
    for found, gradient in zip(torch.autograd.grad(x.square().sum(), trained), expected, strict=True):
        torch.testing.assert_close(found, gradient)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_it_trains_under_ddp():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        model = train_adapters(lorun.share_stages(small_network(), "stages", gamma=50))
        expected = torch.autograd.grad(
            model(IMAGE).square().sum(), [p for p in model.parameters() if p.requires_grad]
        )
        wrapped = nn.parallel.DistributedDataParallel(model)
        wrapped(IMAGE).square().sum().backward()
        found = [p.grad for p in model.parameters() if p.requires_grad]
        for gradient, own in zip(found, expected, strict=True):
            torch.testing.assert_close(gradient, own)
        assert lorun.report(wrapped).adapters == lorun.report(model).adapters
    finally:
        torch.distributed.destroy_process_group()


def test_one_module_at_all_places_becomes_as_many_views():
    stage = small_network(1).stages[0]
    model = nn.Module()
    model.stages = nn.ModuleList([stage] * 4)
    lorun.share_stages(model, "stages", gamma=50)
    assert len({id(s) for s in model.stages}) == 4
    assert len({id(s.first.base_weight) for s in model.stages}) == 1
    assert len({id(s.first.lora_up) for s in model.stages}) == 4
    assert len({id(s.step) for s in model.stages}) == 4
    assert all(torch.equal(s(IMAGE), model.stages[0](IMAGE)) for s in model.stages)


@pytest.mark.parametrize("base", ["mean", "stage", "state"])
def test_the_base_may_be_the_mean_or_given(base):
    model, other = small_network(), small_network(1, seed=5).stages[0]
    mean = torch.stack([s.first.weight.detach() for s in model.stages]).mean(0)
    given = {"mean": "mean", "stage": other, "state": other.state_dict()}[base]
    lorun.share_stages(model, "stages", base=given)
    expected = mean if base == "mean" else other.first.weight
    torch.testing.assert_close(model.stages[2].first.base_weight.detach(), expected.detach())


def test_scaling_rank_dropout_and_freezing_are_the_callers_choice():
    model = lorun.share_stages(
        small_network(), "stages", rank=2, alpha=6, rslora=True, rank_dropout=0.25, freeze=False
    )
    layer = model.stages[1].second
    assert layer.scaling == pytest.approx(6 / 2**0.5) and layer.rank_dropout == 0.25
    assert layer.base_weight.requires_grad
    assert lorun.share_stages(small_network(), "stages", rank=2, alpha=6).stages[0].second.scaling == 3


def test_beside_a_base_of_half_precision_adapters_are_in_float32():
    model = lorun.share_stages(small_network().bfloat16(), "stages", gamma=50)
    assert model.stages[0].first.lora_up.dtype == torch.float32
    assert model(IMAGE.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        model(IMAGE).square().sum().backward()
    assert model.stages[2].first.lora_up.grad.dtype == torch.float32


def test_a_weight_that_two_modules_of_a_stage_use_has_one_adapter():
    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv2d(4, 8, 3, bias=False), nn.ConvTranspose2d(8, 4, 3, bias=False)
            self.up.weight = self.down.weight

        def forward(self, x):
            return self.up(self.down(x))

    model = nn.Sequential(Stage(), Stage())
    lorun.share_stages(model, ["0", "1"], gamma=25)
    train_adapters(model)
    stage = model[1]
    assert stage.down.lora_up is stage.up.lora_up and stage.down.lora_up is not model[0].down.lora_up
    torch.testing.assert_close(stage.up.weight, stage.down.weight)


def test_hooks_and_attributes_of_a_stage_survive():
    model, calls = small_network(), []
    for stage in model.stages:
        stage.first.register_forward_hook(lambda *_: calls.append(1))
        stage.note = "mine"
    lorun.share_stages(model, "stages")
    model(IMAGE)
    assert len(calls) == 3 and model.stages[1].note == "mine"


def test_a_parameter_that_a_list_holds_too_is_refused_by_name():
    model = small_network()
    for stage in model.stages:
        stage.held = [stage.first.weight]
    with pytest.raises(ValueError, match="first.weight: the stage.held holds this Parameter too"):
        lorun.share_stages(model, "stages")
    assert len({id(s.first.weight) for s in model.stages}) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "low"}, "form must be one of"),
        ({"rank_dropout": 1.0}, "rank_dropout must be a probability"),
        ({"base": "last"}, 'base: expected "first", "mean"'),
        ({"base": {}}, "base: expected 'first.weight' of shape"),
        ({"rank": 0}, "rank: expected an int of at least 1"),
        ({"gamma": 0}, "gamma must be a percentage"),
        ({"alpha": float("nan"), "rank": 1}, "alpha"),
    ],
)
def test_what_is_refused_leaves_the_network_alone(options, words):
    model = small_network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=words):
        lorun.share_stages(model, "stages", **options)
    assert list(model.state_dict()) == list(before) and not adapted_weights(model)
    assert all(p.requires_grad for p in model.parameters())
