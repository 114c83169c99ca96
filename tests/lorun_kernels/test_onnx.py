"""Networks with adapted layers through both exporters to ONNX: ONNX Runtime computes the same."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from lorun_kernels import FusedLoRAConv2d, FusedLoRALinear, adapted_weights, add_adapter, merge, to_plain
from lorun_kernels.backends import uses_reference

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

EXPORTERS = pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])


class Network(nn.Module):
    """Every kind of adapted layer, a second input, a residual, and a weight that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = FusedLoRAConv2d(3, 8, 3, padding=1, activation="gelu", rank=2, scaling=0.5)
        self.grouped = FusedLoRAConv2d(8, 8, (2, 3), padding="same", groups=2, rank=1)
        self.full = FusedLoRAConv2d(8, 8, 3, padding=1, groups=8, padding_mode="circular")
        self.both = FusedLoRAConv2d(11, 8, 3, padding=1, form="factored", activation="leaky_relu")
        self.up = add_adapter(nn.ConvTranspose2d(8, 4, 2, stride=2), rank=1)
        self.rows = FusedLoRALinear(12, 5, rank=2)
        with torch.no_grad():
            for weight in adapted_weights(self).values():
                for tensor in weight.tensors:
                    tensor.normal_(std=0.3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.full(self.grouped(self.first(image)))
        features = self.both(features, image, residual=features)
        back = nn.functional.conv_transpose2d(features, self.first.weight, padding=1)
        return self.rows(self.up(features + back.mean(1, keepdim=True)))


def network() -> tuple[nn.Module, torch.Tensor]:
    return Network().eval(), torch.randn(2, 3, 5, 6)


def exported(model: nn.Module, image: torch.Tensor, dynamo: bool, **options) -> onnxruntime.InferenceSession:
    file = io.BytesIO()
    program = torch.onnx.export(
        model, (image,), None if dynamo else file, dynamo=dynamo, verbose=False, **options
    )
    graph = program.model_proto.SerializeToString() if dynamo else file.getvalue()
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, image: torch.Tensor) -> torch.Tensor:
    (result,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    return torch.from_numpy(result)


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result, expected.detach(), rtol=1e-5, atol=1e-5)


@EXPORTERS
@pytest.mark.parametrize(
    "prepare", [lambda model: model, to_plain, merge], ids=["adapted", "plain", "merged"]
)
def test_exported_network_computes_the_same(prepare, dynamo):
    model, image = network()
    expected = model(image)
    assert_same(run(exported(prepare(model), image, dynamo), image), expected)


@EXPORTERS
def test_export_leaves_the_network_and_its_backend_as_they_were(dynamo):
    model, image = network()
    before = model(image)
    exported(model, image, dynamo)
    assert not uses_reference()
    with torch.profiler.profile() as profile, torch.no_grad():
        after = model(image)
    assert any(event.name == "lorun::lora_conv2d" for event in profile.events())
    assert torch.equal(before, after)


def test_exported_network_takes_images_of_other_sizes():
    model, image = network()
    sizes = {"image": {0: torch.export.Dim("batch"), 2: torch.export.Dim("height")}}
    session = exported(model, image, dynamo=True, dynamic_shapes=sizes)
    other = torch.randn(1, 3, 8, 6)
    assert_same(run(session, other), model(other))


@pytest.mark.parametrize("strict", [False, True])
def test_export_for_torch_keeps_the_ops(strict):
    """Only an export to ONNX replaces them."""
    model, image = network()
    nodes = torch.export.export(model, (image,), strict=strict).graph.nodes
    assert torch.ops.lorun.lora_conv2d.default in {node.target for node in nodes}
    traced = torch.jit.trace(model.first, (image,))
    assert "lorun::lora_conv2d" in str(traced.inlined_graph)


@pytest.mark.parametrize("strict", [False, True])
def test_export_for_onnx_has_no_op_of_lorun(monkeypatch, strict):
    """Also where the exporter traces by torch.compile, which takes the answer of a question as a constant."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    model, image = network()
    nodes = torch.export.export(model, (image,), strict=strict).graph.nodes
    assert not [node for node in nodes if "lorun" in str(node.target)]
