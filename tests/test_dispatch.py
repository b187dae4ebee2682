"""Promise: one module decides what computes a formula, and says for every call what did, and why nothing faster."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

import manualgrad as mg
from manualgrad import dispatch, kernels
from manualgrad.dispatch import Backend, FormulaKernel, by_kernel, registered
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d
from manualgrad.ops.conv_relu_pool_geometry import make_conv_relu_pool_geometry
from manualgrad.ops.relu import relu_forward

pytestmark = pytest.mark.usefixtures("restore_kernels")

TOY = Backend("cpu", lambda: "toy module", lambda: "")
# ReLU + 100, for a known mistake; it supports rows only, and declines where a number is larger than 9
TOY_RELU = FormulaKernel(
    "relu_forward",
    TOY,
    unsupported=lambda z: "" if z.dim() == 1 else "z is not a row",
    run=lambda module, z: (z.clamp(min=0) + 100) if module == "toy module" and z.max() <= 9 else None,
    declines="a number is larger than 9",
)


def reasons(function, *args):
    return [(r.formula, r.computed_by, r.reason) for r in kernels.explain(function, *args).records]


def test_a_registered_kernel_computes_the_calls_that_it_supports():
    row, matrix, large = torch.tensor([-1.0, 2.0]), torch.tensor([[-1.0, 2.0]]), torch.tensor([-1.0, 20.0])
    no_kernel = ("relu_forward", "formula", "it has no kernel on this device")
    assert reasons(mg.relu, row) == [no_kernel]
    with registered(TOY_RELU):
        assert torch.equal(mg.relu(row), torch.tensor([100.0, 102.0]))
        assert torch.equal(mg.relu(matrix), torch.tensor([[0.0, 2.0]]))
        assert torch.equal(mg.relu(large), torch.tensor([0.0, 20.0]))
        assert torch.equal(relu_forward.__wrapped__(row), torch.tensor([0.0, 2.0])), "the formula itself"
        assert reasons(mg.relu, row) == [("relu_forward", "cpu kernel", "")]
        assert reasons(mg.relu, matrix) == [("relu_forward", "formula", "z is not a row")]
        declined = "the kernel ran and declined: a number is larger than 9"
        assert reasons(mg.relu, large) == [("relu_forward", "formula", declined)]
        assert reasons(torch.vmap(mg.relu), matrix)[0][1:] == ("formula", "a transform of torch.func is active")
        with registered(replace(TOY_RELU, backend=Backend("cpu", lambda: None, lambda: "the toy is broken"))):
            assert reasons(mg.relu, row) == [("relu_forward", "formula", "the toy is broken")]
        assert torch.equal(mg.relu(row), torch.tensor([100.0, 102.0])), "the kernel before it is restored"
    assert reasons(mg.relu, row) == [no_kernel]
    assert torch.equal(mg.relu(row), torch.tensor([0.0, 2.0]))


def test_a_kernel_of_another_device():
    """A device is a type of tensor and a row in the table: here one whose tensors have no memory."""
    meta = Backend("meta", lambda: "module", lambda: "")
    with registered(FormulaKernel("relu_forward", meta, lambda z: "", lambda module, z: z.new_empty(7))):
        assert mg.relu(torch.empty(3, device="meta")).shape == (7,)
        assert reasons(mg.relu, torch.empty(3, device="meta")) == [("relu_forward", "meta kernel", "")]
        assert mg.relu(torch.ones(3)).shape == (3,)
    assert dispatch.find_kernel("relu_forward", "meta") is None
    with pytest.raises(ValueError, match="only a CPU kernel may decline, not relu_forward on meta"):
        replace(TOY_RELU, backend=meta)


def test_the_kernels_of_a_device_are_imported_when_its_first_tensor_asks(monkeypatch):
    monkeypatch.setattr(dispatch, "_PACKAGES", {"meta": "tests.test_dispatch"})  # whose KERNELS are below
    monkeypatch.setattr(dispatch, "_loaded_devices", {"cpu"})
    monkeypatch.setattr(dispatch, "_kernels", dict(dispatch._kernels))
    mg.relu(torch.ones(3))
    assert ("relu_forward", "meta") not in dispatch._kernels
    assert mg.relu(torch.empty(3, device="meta")).shape == (5,)


KERNELS = (
    FormulaKernel(
        "relu_forward", Backend("meta", lambda: 1, lambda: ""), lambda z: "", lambda module, z: z.new_empty(5)
    ),
)


def test_a_kernel_that_returns_none_without_a_declared_reason_raises():
    with (
        registered(replace(TOY_RELU, declines="")),
        pytest.raises(RuntimeError, match="kernel for relu_forward on cpu returned None"),
    ):
        mg.relu(torch.tensor([20.0]))


needs_kernels = pytest.mark.skipif(not kernels.available().instructions, reason=str(kernels.available()))


@needs_kernels
def test_reasons_of_the_cpu_kernels():
    x, w = torch.randn(2, 1, 6, 6, requires_grad=True), torch.randn(8, 1, 3, 3, requires_grad=True)
    names = ("conv_relu_pool_forward", "conv_relu_pool_backward")

    def step(x, w, **options):
        conv2d_relu_max_pool2d(x, w, **options).sum().backward()

    assert reasons(step, x, w) == [(name, "cpu kernel", "") for name in names]
    options = {"stride": 2}
    explanation = kernels.explain(step, x, w, **options)
    because = "the convolution has a stride, a dilation, padding or groups"
    assert [r.reason for r in explanation.records if r.depth == 0] == [because, because]
    first, convolution, nested = str(explanation).splitlines()[:3]
    assert first.startswith("conv_relu_pool_forward(float32 (2, 1, 6, 6), float32 (8, 1, 3, 3), None, ")
    assert first.endswith(f"): formula, since {because}")
    assert convolution.startswith("  conv2d_forward_nchw(") and convolution.endswith("): cpu kernel")
    assert nested.startswith("  relu_pool_forward(")
    assert {r[2] for r in reasons(step, x.double(), w.double())[:1]} == {"a tensor is not float32"}
    infinite = x.detach().clone().fill_(torch.inf).requires_grad_()
    declined = "the kernel ran and declined: an element of x or w is not finite, and the kernel skips products with 0"
    assert (names[1], "formula", declined) in reasons(step, infinite, w)
    invalid = torch.tensor([7])
    with pytest.raises(IndexError):
        kernels.explain(mg.softmax_cross_entropy, torch.randn(1, 3), invalid)
    kernels.choose("off")
    assert reasons(step, x, w)[0] == (names[0], "formula", "kernels are switched off")
    assert str(kernels.explain(torch.add, x, w[:, :, :1, :1].sum())) == (
        "no formula that a kernel could compute was called"
    )


@needs_kernels
def test_compilers_record_an_operator_where_a_kernel_supports_the_call(monkeypatch):
    """``tests/cpu/test_conv_pool.py`` compiles one; here nothing is compiled."""
    x, w = torch.randn(2, 1, 6, 6), torch.randn(8, 1, 3, 3)
    geometry = make_conv_relu_pool_geometry(x, w, None, 1, 0, True, 0.5)
    strided = make_conv_relu_pool_geometry(x, w, None, 2, 0, True, 0.5)
    monkeypatch.setattr(dispatch, "_operators", {"conv_relu_pool_forward": lambda *args: "the operator"})
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert by_kernel("conv_relu_pool_forward", x, w, None, geometry) == "the operator"
    assert by_kernel("conv_relu_pool_forward", x, w, None, strided) is None
    assert by_kernel("conv_relu_pool_forward", x.double(), w, None, geometry) is None
    assert by_kernel("relu_backward", x, x, 0.5) is None, "a kernel without an operator"
    kernels.choose("off")
    assert by_kernel("conv_relu_pool_forward", x, w, None, geometry) is None


# A kernel reads values, and would drop the tangents that tensors have in forward mode.


def test_a_hessian_vector_product_without_create_graph():
    images, v = torch.randn(2, 2, 1, 8, 8)
    w = torch.randn(8, 1, 3, 3, requires_grad=True)

    def product(x, v, w):
        with forward_ad.dual_level():
            out = conv2d_relu_max_pool2d(forward_ad.make_dual(x, v), w)
            (grad,) = torch.autograd.grad(out.square().sum(), w)
            return forward_ad.unpack_dual(grad).tangent

    expected = product(images.double(), v.double(), w.detach().double().requires_grad_())
    torch.testing.assert_close(product(images, v, w), expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["loss", "convolution", "network"])
def test_the_tangent_of_an_incoming_gradient(name):
    w = torch.randn(8, 1, 3, 3, requires_grad=True)
    if name == "loss":
        out = mg.softmax_cross_entropy(w.flatten(1), torch.arange(8))
    elif name == "convolution":
        out = conv2d_relu_max_pool2d(torch.randn(2, 1, 8, 8), w)
    else:
        model = mg.DocumentCNN(image_size=10, channels=(8,), kernel_size=3)
        out, w = model(torch.randn(2, 1, 10, 10)), model.conv0.weight
    g, v = torch.randn(2, *out.shape)
    with forward_ad.dual_level():
        (grad,) = torch.autograd.grad(out, w, forward_ad.make_dual(g, v), retain_graph=True)
        tangent = forward_ad.unpack_dual(grad).tangent
    (expected,) = torch.autograd.grad(out, w, v)  # backward is linear in the incoming gradient
    torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-5)


def test_ops_ask_no_device_and_import_no_kernel():
    """``tests/test_imports.py`` holds that ``ops`` imports no kernel. Autocast alone depends on the device there."""
    asking = re.compile(r"\bis_cpu\b|\.is_cuda\b|device\.type")
    folder = Path(mg.__file__).parent / "ops"
    lines = [
        (path.name, line.strip())
        for path in folder.glob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if asking.search(line)
    ]
    assert [line for line in lines if line[0] != "precision.py"] == [
        ("softmax.py", 'if input.device.type != "cpu":  # on the CPU autocast does not change softmax')
    ]
