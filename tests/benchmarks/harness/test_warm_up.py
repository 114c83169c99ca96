"""Layers are compiled once each, in parts."""

from dataclasses import replace

import torch

from benchmarks import table
from benchmarks.cases import lora_layer
from benchmarks.harness import warm_up


def test_parts_run_every_layer_once_on_triton(monkeypatch):
    ran = []

    class Spy(dict):
        def __getitem__(self, name):
            one = super().__getitem__(name)
            return replace(one, call=lambda i: ran.append((name, torch.is_grad_enabled())))

    def build(device, **arguments):
        case = entry.build(device=device, **arguments)
        case.candidates = Spy(case.candidates)
        return case

    monkeypatch.setitem(lora_layer.BACKENDS, "cpu", {"LoRun, triton": "reference"})
    entry = table.entry(lora_layer.FORWARD)
    tiny = replace(entry, build=build, quick=({**entry.tiny}, {**entry.tiny, "batch": 1}))
    training = replace(tiny, build=lambda **arguments: build(grad=True, **arguments))
    entries = {lora_layer.FORWARD: tiny, lora_layer.TRAINING: training, lora_layer.BARE: tiny}
    monkeypatch.setattr(warm_up, "entry", entries.__getitem__)
    for part in range(4):
        before = len(ran)
        warm_up.main(part, 4, device="cpu")
        assert len(ran) - before == (2 if part < 2 else 1)
    assert {name for name, _ in ran} == {"LoRun, triton"}
    assert sum(grad for _, grad in ran) == 2
