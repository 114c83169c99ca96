from types import SimpleNamespace

import torch

from lorun_kernels._vmap import loop_rule

INFO = SimpleNamespace(batch_size=3)


def test_each_sample_is_a_call_of_its_own():
    calls = []

    def op(x, y, factor):
        calls.append(x.shape)
        return factor * x @ y

    x, y = torch.randn(4, 3, 5), torch.randn(5, 2)
    found, dim = loop_rule(op)(INFO, (1, None, None), x, y, 2.0)
    assert dim == 0 and calls == [torch.Size([4, 5])] * 3
    torch.testing.assert_close(found, 2 * x.movedim(1, 0) @ y)


def test_results_that_are_absent_stay_absent():
    found, dims = loop_rule(lambda x: (x, None))(INFO, (0,), torch.arange(3.0))
    assert dims == (0, None) and found[1] is None
    torch.testing.assert_close(found[0], torch.arange(3.0))
