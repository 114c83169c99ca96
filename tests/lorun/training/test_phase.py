import pytest
import torch

from lorun.checkpoint import load_network
from lorun.denoisers import UNet
from lorun.physics import BlockCS
from lorun.training import Phase, train
from lorun.training.phase import parameter_groups
from lorun.unfolding import UnfoldingNetwork


@pytest.mark.parametrize("stop_at", [3, 9])
def test_a_stopped_run_ends_as_an_unbroken_one(photos, tiny, logged, tmp_path, train_until, stop_at):
    whole = load_network(train(tiny(), tmp_path / "whole"))[0]
    train_until(stop_at, tiny(), tmp_path / "stopped")
    resumed = load_network(train(tiny(), tmp_path / "stopped"))[0]
    for (name, p), q in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q), name
    for phase in ("phase1.jsonl", "phase2.jsonl"):
        assert logged(tmp_path / "whole" / phase) == logged(tmp_path / "stopped" / phase)


def test_a_full_phi_learns_at_a_rate_of_its_own():
    phase = Phase(phi_lr=0.03)
    for rank, scales in ((0, [1.0, 0.03]), (2, [1.0])):
        net = UnfoldingNetwork(BlockCS(0.25, block=8, adapter_rank=rank), UNet(width=4), 2, "shared")
        groups = parameter_groups(net, phase)
        assert [group["scale"] for group in groups] == scales
        grouped = [p for group in groups for p in group["params"]]
        assert {id(p) for p in grouped} == {id(p) for p in net.parameters() if p.requires_grad}
        assert len(grouped) == len({id(p) for p in grouped})
        if rank == 0:
            assert groups[1]["params"] == [net.physics.phi]
