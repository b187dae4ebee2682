"""Promise: a mistake of one of these kinds is told in words that name it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from compare import Case, compare
from compare.gradients.diagnosis import jacobian
from compare.gradients.diagnosis.conditions import separate
from compare.gradients.diagnosis.features import Feature
from compare.gradients.diagnosis.option_words import changed_option
from tests.compare.gallery.unseen.operation import Formulas
from tests.compare.gallery.unseen.score import wrong_functions

pytestmark = pytest.mark.usefixtures("short_search")


def shrunk(z: Tensor) -> Tensor:
    size = z.abs()
    return (size - size.detach().mean()) * z / size


def scaled_mean(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / x.var(1, correction=0, keepdim=True).sqrt()


def scaled_mean_backward(g: Tensor, x: Tensor) -> Tensor:
    """The two sums are not divided by the number of columns."""
    y, deviation = scaled_mean(x), x.var(1, correction=0, keepdim=True).sqrt()
    return (g - g.sum(1, keepdim=True) - y * (g * y).sum(1, keepdim=True)) / deviation


def neighbours(a: Tensor) -> Tensor:
    return torch.stack([a[t].sin() * a[t + 1] for t in range(4)])


def neighbours_backward(g: Tensor, a: Tensor) -> Tensor:
    """The derivative of the sine is multiplied by the same row instead of the next one."""
    grad = torch.zeros_like(a)
    for t in range(4):
        grad[t] += g[t] * a[t].cos() * a[t]
        grad[t + 1] += g[t] * a[t].sin()
    return grad


def phasor(r: Tensor, t: Tensor) -> Tensor:
    return r * torch.exp(1j * t)


def phasor_backward(g: Tensor, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The factor r is missing in the gradient of the angle."""
    unit = torch.exp(1j * t)
    return (g * unit.conj()).real, (g * (1j * unit).conj()).real


def shares(x: Tensor) -> Tensor:
    total = torch.zeros(2, dtype=x.dtype).index_add(0, torch.tensor([0, 1, 1, 0, 1]), x.exp())
    return x.exp() / total[torch.tensor([0, 1, 1, 0, 1])]


def corrected_states(k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    state, states = torch.zeros_like(v[0]), []
    for t in range(4):
        error = v[t] - k[t] * state
        state = state + b[t] * (k[t] * error)
        states.append(state)
    return torch.stack(states)


def corrected_states_backward(g: Tensor, k: Tensor, v: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """The gradient of b uses v instead of the error."""
    before = torch.cat([torch.zeros_like(v[:1]), corrected_states(k, v, b)[:-1]])
    grad_k, grad_v, grad_b, carried = torch.zeros_like(k), torch.zeros_like(v), torch.zeros_like(b), 0
    for t in range(3, -1, -1):
        carried = carried + g[t]
        grad_error = carried * b[t] * k[t]
        grad_b[t] = (carried * k[t] * v[t]).sum()
        grad_v[t] = grad_error
        grad_k[t] = (carried * b[t] * (v[t] - k[t] * before[t]) - grad_error * before[t]).sum()
        carried = carried - grad_error * k[t]
    return grad_k, grad_v, grad_b


FRAME = torch.tensor([[1.0, 2.0], [0.0, 1.0], [2.0, 1.0]], dtype=torch.float64)


def framed(x: Tensor) -> Tensor:
    return x @ FRAME.mT.to(x.dtype)


def framed_backward(g: Tensor, x: Tensor) -> Tensor:
    """The map that gives x back is applied instead of the transpose."""
    return g @ torch.linalg.pinv(FRAME).mT.to(g.dtype)


def gated(x: Tensor, a: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[0]), []
    for t in range(4):
        z = (x[t] * a).sigmoid()
        state = z * state + (1 - z) * x[t]
        states.append(state)
    return torch.stack(states)


def gated_backward(g: Tensor, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The gates are those of the previous step."""
    before, z = torch.cat([torch.zeros_like(x[:1]), gated(x, a)[:-1]]), (x * a).sigmoid()
    grad_x, grad_a, carried = torch.zeros_like(x), torch.zeros_like(a), 0
    for t in range(3, -1, -1):
        carried, gate = carried + g[t], z[max(t - 1, 0)]
        grad_z = carried * (before[t] - x[t]) * gate * (1 - gate)
        grad_x[t], grad_a = carried * (1 - gate) + grad_z * a, grad_a + grad_z * x[t]
        carried = carried * gate
    return grad_x, grad_a


INSTEAD = (
    "`a[t]` is used instead of `a[t + 1]`" if sys.version_info >= (3, 11) else "is used instead of another one there"
)
CASES: list[tuple[Any, ...]] = [
    (shrunk, lambda: {"z": torch.randn(4, 3, dtype=torch.complex64)},
     lambda g, z: g * (1 - z.abs().mean() / z.abs()), "missing term", "derivative through abs in line"),
    (scaled_mean, lambda: {"x": torch.randn(4, 7)}, scaled_mean_backward, "factor of one term", "are both 7 times"),
    (phasor, lambda: {"r": torch.rand(3, 4) + 1, "t": torch.randn(3, 4)}, phasor_backward, "missing term",
     "the derivative of mul in line"),
    (shares, lambda: {"x": torch.randn(5)}, lambda g, x: shares(x) * (g - (g * shares(x)).sum()), "wrong sum",
     "the sum of g y is over all elements"),
    (corrected_states, lambda: {"k": torch.randn(4) / 2, "v": torch.randn(4, 3), "b": torch.rand(4)},
     corrected_states_backward, "step left out", "in all 4 places: "),
    (neighbours, lambda: {"a": torch.randn(5, 3)}, neighbours_backward, "another operand", INSTEAD),
    (framed, lambda: {"x": torch.randn(4, 2)}, framed_backward, "not transposed", "multiplied by the inverse of"),
    (gated, lambda: {"x": torch.randn(4, 3), "a": torch.randn(3)}, gated_backward, "another operand",
     "of the previous step"),
]  # fmt: skip


@pytest.mark.parametrize(("native", "inputs", "backward", "kind", "words"), CASES, ids=[c[0].__name__ for c in CASES])
def test_a_mistake_is_told_in_words(
    native: Callable[..., Tensor], inputs: Callable[[], dict[str, Tensor]], backward: Callable[..., Any], kind: str,
    words: str,
):  # fmt: skip
    options = {"whole_numbers": False}
    (finding,) = compare(Formulas("case", native, inputs, backward, (), options).case("case", backward)).findings
    assert (finding.kind, words in finding.statement) == (kind, True), finding


@pytest.mark.parametrize(
    ("option", "value", "instead", "kind", "words"),
    [
        ("adjoint", True, False, "not transposed", "the matrix is not transposed in solve (adjoint is False"),
        ("transpose", False, True, "transposed", "the matrix is transposed in solve, and should not be"),
        ("upper", True, False, "another operand", "the lower triangle of the matrix is used instead of the upper"),
        (
            "left",
            False,
            True,
            "another operand",
            "the solution of A X = B is used instead of the solution of X A = B",
        ),
        ("approximate", "tanh", "none", "another operand", "'none' is used instead of 'tanh' in solve"),
        ("", 2, 1, "another operand", "1 is used instead of 2 in solve"),
    ],
)
def test_options_have_words(option: str, value: Any, instead: Any, kind: str, words: str):
    assert changed_option(option, value, instead, "solve")[0] == kind
    assert words in changed_option(option, value, instead, "solve")[1]


@pytest.mark.parametrize(
    ("name", "inside", "words"),
    [
        ("a - b", lambda v: v == 0, "a equals b"),
        ("a - b", lambda v: v >= 0, "a >= b"),
        ("x", lambda v: v == 0.5, "x is 0.5"),
        ("x", lambda v: v <= 0.5, "x <= 0.5"),
        ("x", lambda v: v < 0.5, "x < 0.5"),
    ],
)
def test_a_condition_says_of_its_bound_what_is_true_there(name: str, inside: Callable[[Tensor], Tensor], words: str):
    """Several values are at the bound itself, as at ties and clamps: "a > b and a < b" contradicts itself."""
    values = torch.tensor(
        [0.0, 0.5] * 6 + [-3.2, -2.4, -1.3, -0.7, -0.2, 0.3, 0.7, 1.2, 1.9, 2.3, 3.1], dtype=torch.float64
    )
    mask = inside(values)
    assert separate([Feature(name, values)], mask, torch.ones_like(mask)) == (words, False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dropped elements, next random numbers", "backward draws random numbers again"),
        ("logistic loss, overflow of the exponential", "only in float16, where it is NaN in 5 of 30 elements"),
        ("ordered classes, lower cut", "an index one too large is used"),
        pytest.param(
            "attention that decays, decay of the first head", "decay is taken at index 0", marks=pytest.mark.slow
        ),
        pytest.param(
            "linear layer and cross-entropy in chunks, last chunk", "rows 8, 9 of the mask", marks=pytest.mark.slow
        ),
        pytest.param("wavelet by lifting, inverse", "multiplied by the inverse of", marks=pytest.mark.slow),
        pytest.param(
            "clockwork network, steps counted from the end",
            "the step with the same number from the end",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_mistake_of_the_eleventh_set_is_told_in_words(name: str, words: str):
    wrong = next(wrong for wrong in wrong_functions("eleventh_set") if wrong.case.name == name)
    (finding,) = compare(wrong.case).findings
    assert words in finding.statement, finding


class TwoOutputs(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        return 2 * x, 3 * x

    @staticmethod
    def backward(ctx, g, h):
        return 2 * g + 3 * h


def test_an_output_that_nothing_uses_has_none_as_its_gradient():
    case = Case("two", TwoOutputs.apply, lambda x: (2 * x, 3 * x), lambda: {"x": torch.randn(3)})
    (finding,) = compare(case).findings
    assert finding.kind == "raises" and "an output that nothing uses is None" in finding.statement, finding


def test_a_gradient_that_is_not_returned_reads_as_no_gradient():
    case = Case("detached", lambda x: (2 * x).detach(), lambda x: 2 * x, lambda: {"x": torch.randn(3)})
    (finding,) = compare(case, dtypes=(torch.float64,)).findings
    assert finding.kind == "none" and "[no gradient]" in str(finding) and "[none]" not in str(finding)


def test_what_was_not_asked_is_told(monkeypatch: pytest.MonkeyPatch):
    """A gradient without a pattern, by an output of more elements than are asked for."""
    monkeypatch.setattr(jacobian, "MAX_ROWS", 16)
    noise = torch.rand(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    case = Formulas(
        "noise", lambda x: x.sin(), lambda: {"x": torch.randn(20)},
        lambda g, x: g * x.cos() + noise.to(g.dtype) @ g, (),
    )  # fmt: skip
    (finding,) = compare(case.case("noise", case.backward)).findings
    assert "asked for 16 of 20 elements of the output" in finding.evidence, finding


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("retention, decay in the other direction", "a triangular matrix or mask (tril, triu) is not transposed"),
        ("product of quaternions, order of the factors", "a product that does not commute are in the other order"),
        ("Cayley transform, inverse not transposed", "the matrix is not transposed in linalg_lu_solve (adjoint is"),
        ("exponential of a symmetric matrix, not symmetric", "is not symmetric, and should be"),
        ("batch norm of images, divided by the number of images", "are both 10 times as large"),
        ("angles around a mean, scaled Bessel function", "i1e is used instead of i1"),
        ("products of shifted rows, not shifted in backward", "a shift or place that depends on the row is ignored"),
    ],
)
def test_a_mistake_of_the_tenth_set_is_told_in_words(name: str, words: str):
    wrong = next(wrong for wrong in wrong_functions("tenth_set") if wrong.case.name == name)
    (finding,) = compare(wrong.case).findings
    assert words in finding.statement, finding
