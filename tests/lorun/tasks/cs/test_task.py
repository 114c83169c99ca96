import numpy as np
import pytest
import torch
from PIL import Image

from lorun.errors import ArgumentError
from lorun.tasks import TASKS
from lorun.tasks.cs.options import CSRestore
from lorun.tasks.cs.settings import CSNetwork
from lorun.tasks.task import Scene

TASK = TASKS["cs"]


def test_the_ratio_picks_the_shipped_lorun_model():
    shipped = {
        "shared25": CSNetwork(variant="shared"),
        "lorun25": CSNetwork(),
        "lorun10": CSNetwork(ratio=0.1),
    }
    assert TASK.default_model(TASK.restore_options(), shipped) == "lorun25"
    assert TASK.default_model(CSRestore(ratio=0.1), shipped) == "lorun10"
    assert TASK.default_model(TASK.eval_options(), shipped) == "lorun25"
    with pytest.raises(ValueError, match="no shipped model restores ratio 0.5; expected one of 0.1, 0.25"):
        TASK.default_model(CSRestore(ratio=0.5), shipped)


def test_a_photograph_is_measured_and_a_measurement_is_taken_as_it_is(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 33)).astype(np.uint8)
    path, measured = tmp_path / "a.png", tmp_path / "y.npz"
    Image.fromarray(image).save(path)
    physics = TASK.physics(CSNetwork(ratio=0.1, block=8, variant="shared")).requires_grad_(False)
    photo = TASK.open(path, CSRestore(), physics)
    assert photo.name == "a.png" and photo.size == (20, 33) and photo.y is None
    y = TASK.measurement(photo, physics)
    TASK.save(tmp_path / "out.png", photo.truth, photo, y, CSRestore(measurement=measured))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), image)
    scene = TASK.open(measured, CSRestore(), physics)
    assert scene.truth is None and torch.equal(TASK.measurement(scene, physics), y)
    start = TASK.start(photo, y, physics)
    assert start.shape == (1, 20, 33) and 0 <= start.min() <= start.max() <= 1


def test_calls_that_make_no_sense(tmp_path):
    with pytest.raises(ValueError, match="input: name an image or an .npz measurement"):
        TASK.inputs(None, CSRestore())
    with pytest.raises(ArgumentError, match="measurement: .*y.npz is one already"):
        TASK.inputs(tmp_path / "y.npz", CSRestore(measurement=tmp_path / "z.npz"))
    physics = TASK.physics(CSNetwork())
    with pytest.raises(ValueError, match="another ratio"):
        TASK.measurement(Scene("a", (32, 32), y=np.zeros((103, 1, 1), np.float32)), physics)


def test_only_a_lorun_network_adapts_phi():
    adapted = CSNetwork(ratio=0.1, block=8, phi_rank=2)
    physics = TASK.physics(CSNetwork(ratio=0.1, block=8, phi_rank=2, variant="shared"))
    assert physics.adapter_rank == 0
    TASK.adapt_physics(physics, adapted)
    assert physics.adapter_rank == 2 == TASK.physics(adapted).adapter_rank
