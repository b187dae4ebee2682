"""Layers in float32 compile without a graph break, with the kernels of single layers as operators of the graph."""

from __future__ import annotations

import pytest
import torch

import manualgrad as mg
from tests.conftest import run_forward_backward

pytest.importorskip("llvmlite")

LAYERS = {
    "convolution": lambda x, w: mg.conv2d(x, w, padding=1, stride=2),
    "contiguous": lambda x, w: mg.conv2d(x, w, padding=1, channels_last=False),
    "groups": lambda x, w: mg.conv2d(x, w[:, :4], groups=2),
    "depthwise": lambda x, w: mg.conv2d(x, w[:, :1], groups=8, dilation=2),
    "pooling": lambda x, w: mg.max_pool2d(x, 3, 2, 1) * w.sum(),
    "several layers": lambda x, w: mg.max_pool2d(mg.relu(mg.conv2d(x, w, padding="same")), 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_compiled_layer_has_the_results_of_the_eager_one(name: str) -> None:
    operators = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    x, w = torch.randn(3, 8, 9, 9), torch.randn(8, 8, 3, 3)
    torch._dynamo.reset()
    torch.compile(LAYERS[name], fullgraph=True, backend=backend)(x, w)
    assert any("manualgrad" in operator for operator in operators)
    compiled = torch.compile(LAYERS[name], fullgraph=True, backend="aot_eager")
    expected, actual = (run_forward_backward(f, (x, w), torch.cos) for f in (LAYERS[name], compiled))
    assert [t.stride() for t in actual.values()] == [t.stride() for t in expected.values()]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
