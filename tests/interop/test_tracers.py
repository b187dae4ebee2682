"""Promise: ``torch.fx``, ``torch.jit.trace`` and ``torch.compile`` trace converted models as they do native ones."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import manualgrad as mg

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated")
CLOSE = {"rtol": 0, "atol": 1e-12}  # for float64 values of about 1, whose terms are added in another order


class SqueezeExcite(nn.Module):
    """A network of each layer of ours, with in-place changes of results of 1x1 and of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 40, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.reflected = nn.Conv2d(40, 4, 3, stride=2, padding=1, padding_mode="reflect")
        self.reduce, self.expand, self.gate = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1), nn.Conv2d(4, 1, 1)
        self.pool2, self.flatten, self.fc, self.softmax = (
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(4, 3),
            nn.Softmax(1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.reflected(self.pool(self.relu(self.conv(x))))
        scale = self.expand(self.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid_()
        x = self.pool2(x * scale * self.gate(x).sigmoid_())
        return self.softmax(self.fc(self.flatten(x.mean((2, 3), keepdim=True))))


X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def native() -> nn.Module:
    torch.manual_seed(0)
    return SqueezeExcite().double()


def output_and_gradient(module: nn.Module, x: Tensor = X) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    output = module(leaf)
    output.square().sum().backward()
    return output, leaf.grad


# ------------------------------------------------------------------------------------------------------- torch.fx


def test_fx_records_the_calls_that_it_records_of_a_native_model(native: nn.Module) -> None:
    called: list[str] = []
    native.reduce.register_forward_hook(lambda *_: called.append("hook"))
    ours = mg.from_torch(native)
    traced, expected = fx.symbolic_trace(ours), fx.symbolic_trace(native)
    assert not called
    assert [(n.op, n.name, n.target) for n in traced.graph.nodes] == [
        (n.op, n.name, n.target) for n in expected.graph.nodes
    ]
    torch.testing.assert_close(output_and_gradient(traced), output_and_gradient(native), **CLOSE)
    assert called == ["hook", "hook"]
    assert get_graph_node_names(ours) == get_graph_node_names(native)
    features = create_feature_extractor(ours, {"pool2": "pooled"})(X)
    torch.testing.assert_close(features, create_feature_extractor(native, {"pool2": "pooled"})(X), **CLOSE)


class InlineEverything(fx.Tracer):
    """A tracer without leaf modules."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False


def test_fx_records_our_functions_where_layers_are_no_leaves(native: nn.Module) -> None:
    formula_sheet = nn.Sequential(
        mg.nn.Conv2d(3, 2, 3), mg.nn.ReLU(), mg.nn.MaxPool2d(), mg.nn.ConvReLUMaxPool2d(2, 2, 2), mg.nn.Flatten(),
        mg.nn.Dense(8, 2), mg.nn.Softmax(),
    ).double()  # fmt: skip
    for model in (mg.from_torch(native), formula_sheet):
        traced = fx.GraphModule(model, InlineEverything().trace(model))
        assert not [node for node in traced.graph.nodes if node.op == "call_module"]
        torch.testing.assert_close(output_and_gradient(traced), output_and_gradient(model), **CLOSE)
    loss = fx.symbolic_trace(mg.nn.SoftmaxCrossEntropyLoss())
    labels = torch.tensor([0, 2])
    torch.testing.assert_close(loss(X[:, :, 0, 0], labels), nn.functional.cross_entropy(X[:, :, 0, 0], labels))


# ------------------------------------------------------------------------------------------------------ torch.jit


def test_jit_traces_a_model_for_every_batch_size(native: nn.Module) -> None:
    """The trace is saved without Python, and autograd derives the formulas' own gradients from it, ties included."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(mg.from_torch(native), X, check_trace=False)
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert kinds.count("aten::size") <= 4 and "aten::floor_divide" not in kinds  # a trace with all sizes is slow
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for batch in (X, X[:1], torch.cat([X, X, X.round()])):
        torch.testing.assert_close(output_and_gradient(loaded, batch), output_and_gradient(native, batch), **CLOSE)


@pytest.mark.parametrize(
    "layer", [nn.ReLU(), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1, ceil_mode=True)], ids=repr
)
def test_a_traced_layer_has_natives_gradient_at_ties(layer: nn.Module) -> None:
    x = torch.tensor([0.0, -0.0, 1.0, 1.0, -1.0, float("nan")]).repeat(6).view(1, 1, 6, 6)
    module = nn.Sequential(nn.Identity(), layer)
    traced = torch.jit.trace(mg.from_torch(module), x + 1, check_trace=False)
    gradients = []
    for model in (traced, module):
        leaf = x.clone().requires_grad_()
        model(leaf * 1).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_jit_script_refuses_our_layers() -> None:
    for layer in (mg.from_torch(nn.Sequential(nn.ReLU())), mg.nn.Conv2d(1, 1, 1)):
        with pytest.raises(TypeError, match=r"whose derivatives are written in Python; compile manualgrad\.to_torch"):
            torch.jit.script(layer)
    assert torch.jit.script(mg.to_torch(mg.from_torch(nn.ReLU())))(torch.ones(1)) == 1


# -------------------------------------------------------------------------------------------------- torch.compile


class ChangedInPlace(nn.Module):
    """In-place changes of results of 1x1 and of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(4, 1, 1), nn.MaxPool2d((1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(x).mul_(2)).relu_()


def test_results_changed_in_place_compile() -> None:
    native = ChangedInPlace().double()
    x = torch.randn(2, 4, 1, 2, dtype=torch.float64)
    compiled = torch.compile(mg.from_torch(native), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(output_and_gradient(compiled, x), output_and_gradient(native, x), **CLOSE)
