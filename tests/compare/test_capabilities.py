"""Promise: the capability matrix of ``compare`` says what works, and of what fails, why."""

from __future__ import annotations

import json
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compare.capabilities import (
    CAPABILITIES,
    FAILS,
    NOT_APPLICABLE,
    QUICK,
    WORKS,
    Capability,
    Outcome,
    compare_capabilities,
    examine,
    how,
)
from compare.capabilities.section import section
from compare.case import Case
from tests.compare.lacking import LACKING, Lacking, inputs
from tests.compare.lacking_parts import Picklable, Product, product, times

EVERYTHING_BUT_COPIES = [name for name in CAPABILITIES if name != "copies"]


def verdicts(rows: list[Capability], side: str = "ours") -> dict[str, str]:
    return {row.capability: f"{getattr(row, side).verdict} {getattr(row, side).reason}".strip() for row in rows}


def test_every_capability_has_a_function_that_lacks_it():
    assert {lacking.capability for lacking in LACKING} == set(CAPABILITIES)


@pytest.mark.parametrize("lacking", LACKING, ids=lambda lacking: f"{lacking.capability}: {lacking.name}")
def test_what_is_lacking_is_found_with_its_reason(lacking: Lacking):
    (row,) = examine(lacking.case(), only=[lacking.capability])
    assert row.native == Outcome(WORKS, counts=row.native.counts)
    assert row.ours.verdict == FAILS
    assert re.search(lacking.reason, row.ours.reason), row.ours.reason
    assert row.lacking


def test_a_function_that_lacks_nothing_works_everywhere():
    found = verdicts(examine(Case("product", lambda x, w: product(x, w), times, inputs)))
    assert found.pop("copies").startswith(NOT_APPLICABLE)
    assert found == dict.fromkeys(EVERYTHING_BUT_COPIES, WORKS)


def image_inputs() -> tuple[Tensor, ...]:
    return torch.randn(2, 2, 5, 4), torch.randn(3, 2, 2, 2), torch.randn(3)


NATIVE = {
    "linear": (F.linear, lambda: (torch.randn(3, 4), torch.randn(2, 4), torch.randn(2))),
    "conv2d, relu, max_pool2d": (lambda x, w, b: F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2), image_inputs),
    "cross_entropy": (F.cross_entropy, lambda: (torch.randn(3, 5), torch.randint(5, (3,)))),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (4,), w, b), lambda: (torch.randn(3, 4), *torch.randn(2, 4))),
    "three outputs, one of indices": (
        lambda x, y: (*torch.topk(x * y, 2), y.exp()),
        lambda: {"x": torch.randn(3, 4), "y": torch.randn(3, 4)},
    ),
    "an input itself": (lambda x: x, lambda: (torch.randn(3),)),
    "a number": (lambda x, y: x @ y, lambda: (torch.randn(4), torch.randn(4))),
    "complex inside": (lambda x: torch.fft.fft(x).abs().square(), lambda: (torch.randn(3, 4),)),
}


@pytest.mark.parametrize("name", NATIVE)
def test_native_beside_itself_is_never_accused(name):
    function, make_inputs = NATIVE[name]
    rows = examine(Case(name, function, function, make_inputs), only=QUICK)
    assert [row for row in rows if row.lacking] == []
    assert [(row.ours.verdict, row.ours.counts) for row in rows] == [
        (row.native.verdict, row.native.counts) for row in rows
    ]
    failed = {row.capability for row in rows if row.native.verdict == FAILS}
    assert failed <= {"keeps only what is needed"}, verdicts(rows, "native")  # convolution keeps both operands always


def test_modules_with_parameters():
    pair = [nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)) for _ in range(2)]
    case = Case.from_modules("two layers", *pair, lambda: {"input": torch.randn(5, 4)})
    found = verdicts(examine(case, only=[*QUICK, "vmap"]))
    assert found.pop("threads").startswith("not applicable functional_call")
    assert found.pop("copies").startswith(NOT_APPLICABLE)
    assert set(found.values()) == {WORKS}
    assert verdicts(examine(Case("module", Picklable(), times, inputs), only=["copies"])) == {"copies": WORKS}


def test_native_is_judged_by_central_differences():
    class WrongTwice(Product):
        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return product(g, w.detach()), product(g, x)

    case = Case("both wrong", WrongTwice.apply, WrongTwice.apply, inputs)
    (row,) = examine(case, only=["double backward"])
    assert "by central differences" in row.native.reason
    assert "by central differences" in row.ours.reason, "with no native answer, ours is held against differences too"
    assert not row.lacking
    good = Case("native wrong", times, WrongTwice.apply, inputs)
    assert verdicts(examine(good, only=["double backward"])) == {"double backward": WORKS}


def test_at_a_kink_nobody_is_accused():
    case = Case("at 0", lambda x: torch.maximum(x, torch.zeros_like(x)), F.relu, lambda: (torch.zeros(3),))
    rows = examine(case, only=["double backward", "gradcheck, fast", "gradcheck, slow"])
    assert not any(row.lacking for row in rows)
    assert {row.native.verdict for row in rows} == {FAILS}, "finite differences see the jump"


def test_what_a_function_raises_is_an_outcome_and_an_interruption_is_not():
    def broken(x, w):
        raise RuntimeError("first line\nsecond line")

    rows = examine(Case("broken", broken, times, inputs), only=QUICK)
    reasons = {row.ours.reason for row in rows if row.capability != "copies"}
    assert all("RuntimeError: first line" in reason and "second" not in reason for reason in reasons)
    assert {row.native.verdict for row in rows} == {WORKS, NOT_APPLICABLE}

    def interrupted(x, w):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examine(Case("interrupted", interrupted, times, inputs), only=["hooks"])


def test_a_function_of_whole_numbers_alone():
    rows = examine(Case("whole", lambda n: n + 1, lambda n: n + 1, lambda: (torch.arange(3),)))
    assert all(row.ours == Outcome(NOT_APPLICABLE, "no input is a floating-point number") for row in rows)


def test_what_was_there_before_is_not_taken_for_a_leak():
    constant = torch.randn(3, 4, dtype=torch.float64)
    case = Case("constant", *[lambda x, w: x * w * constant.view(4, 3).view(3, 4)] * 2, inputs)
    assert verdicts(examine(case, only=["no leaks", "checkpoint"])) == {"no leaks": WORKS, "checkpoint": WORKS}


def test_an_unknown_capability_is_named():
    with pytest.raises(ValueError, match="no capability is called flying; there are double backward"):
        examine(Case("product", times, times, inputs), only=["flying"])


def test_the_outside_is_left_as_it_was():
    state, grad = torch.get_rng_state(), torch.is_grad_enabled()
    filters = list(warnings.filters)
    dropout = Case("dropout", lambda x: F.dropout(x), lambda x: F.dropout(x), lambda: (torch.randn(50),))
    (row,) = examine(dropout, only=["deterministic"])
    assert "other bits" in row.native.reason
    assert torch.equal(state, torch.get_rng_state()) and torch.is_grad_enabled() is grad
    assert warnings.filters == filters


def test_a_warning_of_the_functions_own_is_shown():
    def warns(x, w):
        warnings.warn("mind the gap", stacklevel=1)
        return x * w

    with pytest.warns(UserWarning, match="mind the gap"):
        examine(Case("warns", warns, times, inputs), only=["hooks"])


class Bar:
    def __init__(self):
        self.total, self.done, self.said = None, 0, []

    def update(self, n=1):
        self.done += n

    def set_description_str(self, text):
        self.said.append(text)


def test_progress_is_told():
    bar = Bar()
    case = Case("product", times, times, inputs)
    rows = compare_capabilities([case, case], only=["hooks", "func.grad"], progress=bar)
    assert (bar.total, bar.done, len(rows)) == (4, 4, 4)
    assert bar.said[0] == "product: func.grad"


def test_the_work_of_each_gradient_is_counted():
    def linear_inputs() -> dict[str, Tensor]:
        return {"x": torch.randn(8, 4), "w": torch.randn(2, 4), "b": torch.randn(2)}

    case = Case("linear", F.linear, F.linear, linear_inputs)
    (row,) = examine(case, only=["computes only what is asked"])
    # g w takes 8·2·4 products, gᵀx as many, and the sum of g over the batch reads 8·2 numbers and writes 2
    everything = 64 + 64 + 18
    expected = {"x alone": 64, "w alone": 64, "b alone": 18, "all but x": 82, "all but w": 82, "all but b": 128}
    assert row.ours.counts == pytest.approx({name: work / everything for name, work in expected.items()})
    (row,) = examine(case, only=["keeps only what is needed"])
    # w for the gradient of x, x for that of w: 8 and 32 numbers
    expected = {"x alone": 8, "w alone": 32, "b alone": 0, "all but x": 32, "all but w": 8, "all but b": 40}
    assert row.native.counts == pytest.approx({name: kept / 40 for name, kept in expected.items()})


def cell(case: str, capability: str, ours: str, native: str, reason: str = "") -> Capability:
    return Capability(case, capability, Outcome(ours, reason if ours != WORKS else ""), Outcome(native, ""))


ROWS = [
    cell("a", "vmap", WORKS, WORKS),
    cell("a", "hooks", FAILS, WORKS, "called 0 times"),
    cell("a", "copies", NOT_APPLICABLE, NOT_APPLICABLE, "no module"),
    cell("b", "vmap", WORKS, FAILS),
    cell("b", "hooks", FAILS, FAILS, "called 0 times"),
    cell("b", "copies", NOT_APPLICABLE, NOT_APPLICABLE, "no module"),
    cell("c", "vmap", FAILS, NOT_APPLICABLE, "no rule"),
]


def test_the_section_lists_what_ours_lacks():
    report = section(ROWS)
    assert report.failures == [
        "a: hooks: ours fails (called 0 times); native: works",
        "c: vmap: ours fails (no rule); native: not applicable",
    ]
    matrix, reasons, ways = report.parts
    assert matrix.columns == ["capability", "a", "b", "c"]
    assert matrix.rows == [["vmap", "yes", "ours", "NO / –"], ["hooks", "NATIVE", "no", ""]]
    assert matrix.failed == {0, 1}
    assert [row[:2] for row in reasons.rows] == [
        ["hooks", "a"],
        ["vmap", "c"],
        ["vmap", "b"],
        ["hooks", "b"],
        ["copies", "a; b"],
    ]
    assert list(reasons.failed) == [0, 1]
    assert reasons.rows[-1] == ["copies", "a; b", "not applicable: no module", "not applicable"]
    assert ways.rows[0] == ["vmap", how("vmap")]
    assert any("ours works in 1 cell where native fails" in sentence for sentence in report.text)
    json.dumps(report.data)


def test_only_cases_that_are_held_to_it_make_failures():
    assert [failure[0] for failure in section(ROWS, held={"c"}).failures] == ["c"]
    assert section(ROWS, held=()).failures == []


def test_many_cases_stand_side_by_side_under_numbers():
    rows = [cell(f"a case with a long name, {n}", "vmap", WORKS, WORKS) for n in range(30)]
    matrices = [part for part in section(rows).parts if part.title.startswith("What works")]
    assert len(matrices) < 3 and matrices[0].columns[:3] == ["capability", "1", "2"]
    assert "30: a case with a long name, 29" in matrices[0].note
    assert sum(len(matrix.columns) - 1 for matrix in matrices) == 30


def test_everything_is_explained():
    assert all(len(how(name)) > 40 and how(name).endswith(".") for name in CAPABILITIES)
    assert set(QUICK) < set(CAPABILITIES)
