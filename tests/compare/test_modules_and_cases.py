"""Promise: modules are compared parameter by parameter, and a case that cannot be compared says why."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import compare
import manualgrad as mg
from compare.case_errors import CaseFailure
from compare.gradients.section import section
from tests.compare.gallery.wrong_function import hand_written, randn

pytestmark = pytest.mark.usefixtures("short_search")


def test_modules_are_compared_parameter_by_parameter():
    ours, native = nn.Sequential(mg.nn.Dense(4, 3)), nn.Sequential(nn.Linear(4, 3))
    case = compare.Case.from_modules("dense", ours, native, lambda: torch.randn(5, 4))
    comparison = compare.compare(case)
    assert comparison.ok, str(comparison)
    quantities = {row.quantity for row in comparison.rows}
    assert quantities == {"output", "gradient of input", "gradient of 0.weight", "gradient of 0.bias"}
    with pytest.raises(ValueError, match="weight"):
        compare.Case.from_modules("other", nn.Linear(5, 3), native, lambda: torch.randn(5, 4))


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(), nn.Linear(36, 5),
    )  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
def test_a_network_of_torch_matches_its_conversion(training):
    """Each run starts with the same buffers and random state, and the models are left unchanged."""
    native = cnn().train(training)
    ours = mg.from_torch(native)
    before = [{name: value.clone() for name, value in m.state_dict().items()} for m in (ours, native)]
    random_state = torch.get_rng_state()
    case = compare.Case.from_modules("cnn", ours, native, lambda: torch.randn(4, 2, 6, 6), kinks=True)
    compare.assert_matches(case)
    for module, values in zip((ours, native), before, strict=True):
        assert all(torch.equal(value, values[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_wrong_conversion_is_found():
    ours, native = mg.from_torch(cnn()), cnn()
    ours[3].kernel_size = (1, 2)
    ours[3].stride = (2, 2)
    case = compare.Case.from_modules("cnn", ours, native, lambda: torch.randn(4, 2, 6, 6), kinks=True)
    assert "output" in {finding.quantity for finding in compare.compare(case).findings}


def test_a_wrong_module_is_found():
    class Halved(nn.Linear):
        def forward(self, input):
            return F.linear(input, (self.weight + self.weight.detach()) / 2, self.bias)

    case = compare.Case.from_modules("half", Halved(4, 3), nn.Linear(4, 3), lambda: torch.randn(5, 4))
    (finding,) = compare.compare(case).findings
    assert (finding.kind, finding.quantity) == ("constant factor", "gradient of weight")


def test_a_wrong_gradient_is_found_in_a_loop_over_different_shapes():
    """One line that is called with other shapes each time, as ``nn.Sequential`` calls its modules."""

    def native(x, v, w):
        for matrix in (v, w):
            x = x @ matrix
        return x

    case = compare.Case(
        "product", hand_written(native, lambda g, x, v, w: (x.cos(), x.mT @ g @ w.mT, (x @ v).mT @ g)), native,
        randn(x=(2, 2), v=(2, 2), w=(2, 3)), whole_numbers=False,
    )  # fmt: skip
    assert {finding.quantity for finding in compare.compare(case).findings} == {"gradient of x"}


def test_elements_at_kinks_are_told_once():
    near_zero = torch.tensor([0.5, -1.0, 2.0])

    def native(x, scale):
        return ((x - near_zero.to(x)).relu() * scale).sum()

    inputs = {"x": near_zero + torch.tensor([3e-8, 1.0, -1.0]), "scale": torch.ones(())}
    comparison = compare.compare(compare.Case("hinge", native, native, lambda: inputs, kinks=True))
    (sentence,) = comparison.unchecked()
    assert sentence.startswith("Elements at a kink, where rounding decides")
    assert "1 of 3 of gradient of x in float32, 1 of 1 of gradient of scale in float32" in sentence


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (compare.Case("a", torch.exp, lambda x: x @ x, lambda: torch.randn(3, 2)), "native raises in float64"),
        (
            compare.Case("a", torch.exp, torch.exp, lambda: torch.arange(3)),
            "floating-point tensor from make_inputs, got only int64",
        ),
        (
            compare.Case("a", torch.exp, lambda x: x > 0, lambda: torch.randn(3)),
            "floating-point tensor from native, got none",
        ),
    ],
)
def test_a_case_that_cannot_be_compared_says_why(case, message):
    with pytest.raises(compare.CaseError, match=message):
        compare.compare(case)


def test_a_section_without_a_comparison_says_so_and_has_no_empty_table():
    failed = section([], [CaseFailure("mine", "mine: native raises", ())])
    assert failed.text == ["No case could be compared."] and failed.errors == ["mine: native raises"]
    assert [part.title for part in failed.parts] == ["Cases that could not be compared"]


def test_inputs_that_are_no_tensors_raise():
    with pytest.raises(compare.CaseError, match="expected tensors from make_inputs, got input 0 of type list"):
        compare.compare(compare.Case("a", torch.exp, torch.exp, lambda: ([1.0],)))


def test_assert_matches_fails_with_the_findings():
    case = compare.Case("double", lambda x: 2 * x.detach() - x, lambda x: x + 0, lambda: torch.randn(3, 4))
    with pytest.raises(AssertionError, match="equals -1 times the expected gradient"):
        compare.assert_matches(case)
