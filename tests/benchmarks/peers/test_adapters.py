"""The layers of the libraries."""

import pytest
import torch

from benchmarks.cases import lora
from benchmarks.peers import adapters
from benchmarks.peers.packages import package

for name in ("loralib", "peft"):
    try:
        package(name)
    except ImportError as error:
        pytest.skip(f"needs the peers: {error}", allow_module_level=True)


@pytest.mark.parametrize(
    "base", [torch.nn.Linear(11, 7), torch.nn.Conv2d(3, 5, 3, padding=1)], ids=["linear", "conv"]
)
def test_libraries_train_nothing_but_the_factors(base):
    layer = lora._adapted(base)
    for twin in (adapters.loralib(layer), adapters.peft(lora._adapted(base, form="factored"), base)):
        trained = [parameter for parameter in twin.module.parameters() if parameter.requires_grad]
        assert {id(one) for one in trained} == {id(one) for one in twin.factors}
