"""The published form of the steps, against ours in float64."""

import pytest
import torch

from benchmarks.peers import super_resolution as peers
from lorun.physics import SuperResolution


@pytest.mark.parametrize("form", [peers.Published, peers.TermsOnce])
@pytest.mark.parametrize("algorithm", ["pgd", "hqs"])
@pytest.mark.parametrize("kernels", [(), (2,)], ids=["one kernel", "one for each image"])
@pytest.mark.parametrize(
    "scale, size", [(1, (9, 8)), (1, (9, 7)), (2, (10, 14)), (3, (9, 15)), (3, (12, 9)), (4, (12, 20))]
)
def test_it_is_our_step_and_has_its_gradients(form, algorithm, kernels, scale, size):
    kernel = torch.rand(*kernels, 5, 4, dtype=torch.float64) / 20
    physics, peer = SuperResolution(kernel, scale, 2), form(kernel, scale)
    x = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 2, size[0] // scale, size[1] // scale, dtype=torch.float64)
    rate = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    results = []
    for step in (getattr(of, f"{algorithm}_step") for of in (physics, peer, peer)):
        z = step(x, y, rate)
        results.append((z, *torch.autograd.grad(z.square().sum(), (x, rate))))
    for again in results[1:]:
        for found, expected in zip(again, results[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_terms_are_computed_once_for_a_measurement():
    peer = peers.TermsOnce(torch.ones(3, 3) / 9, 2)
    w, y, mu = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 4, 4), torch.tensor(0.1)
    peer.hqs_step(w, y, mu)
    kept = peer.kept["blur"]
    peer.hqs_step(w, y, mu)
    assert peer.kept["blur"] is kept
    other = peer.hqs_step(w, y + 1, mu)
    torch.testing.assert_close(other, peers.Published(peer.kernel, 2).hqs_step(w, y + 1, mu))
