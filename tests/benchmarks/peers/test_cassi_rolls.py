"""What a step of rolls does to its input."""

import torch

from benchmarks.peers import cassi_rolls


@torch.no_grad()
def test_rolls_lose_no_value_of_their_input():
    x, y, mask = torch.rand(1, 3, 4, 5), torch.rand(1, 4, 9), torch.rand(4, 5)
    step, padded = cassi_rolls.RollStep(mask, 3, hqs=True), cassi_rolls.pad(x)
    values = padded.flatten(2).sort().values
    for _ in range(5):
        step(padded, y, torch.tensor(0.5))
    assert torch.equal(padded.flatten(2).sort().values, values)
    assert not torch.equal(padded, cassi_rolls.pad(x))
