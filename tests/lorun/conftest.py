"""What the tests of training share."""

import pytest

from lorun.training import phase, train


@pytest.fixture
def train_until(monkeypatch):
    """train_until(steps, config, out): a run that is interrupted after that many steps."""

    def stopped(steps, config, out):
        done, real_step = [], phase.train_step

        def step(*args):
            if len(done) == steps:
                raise KeyboardInterrupt
            done.append(1)
            return real_step(*args)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(phase, "train_step", step)
            train(config, out)

    return stopped
