"""Promise: each mistake on the page is the one that its text describes, and compare recognizes it."""

from __future__ import annotations

import numpy as np
import pytest

from compare import usual_mistakes
from manualgrad.reference import operations as reference
from tests.follow.conftest import Page, decode

KINDS = {"flip": "[flipped]", "ties": "[only at ties]", "half": "[only at zeros]", "mean": "[constant factor]"}


def effect(page: Page, name: str, side: str) -> dict[str, np.ndarray]:
    return {key: decode(packed) for key, packed in page.data["mistakes"][name][side].items()}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_compare_names_the_mistake_and_the_page_quotes_it(page: Page, name, kind):
    verdict = page.verdicts[name]
    assert kind in verdict and "comparisons are wrong" in verdict
    assert page.html.count(kind) == 1
    assert set(usual_mistakes.cases()) == set(KINDS)


def test_without_the_flip_the_gradient_is_that_of_the_mirrored_kernel(page: Page):
    q, right, wrong = page.quantities(0), effect(page, "flip", "right"), effect(page, "flip", "wrong")
    np.testing.assert_array_equal(right["dx1"], q["dx1"])
    np.testing.assert_array_equal(right["dw0"], q["dw0"])
    delta, w = q["delta1"][None].astype(np.float64), q["w1"][::-1, ::-1].astype(np.float64)
    expected = reference.conv2d_grad_input(delta, w, (1, *q["x1"].shape))[0]
    np.testing.assert_allclose(wrong["dx1"], expected, rtol=0, atol=1e-7)  # float32 sums in another order
    assert np.abs(wrong["dw0"] - right["dw0"]).max() > 0.1 * np.abs(right["dw0"]).max()


def test_every_tied_place_gets_all_of_delta(page: Page):
    q, right, wrong = page.quantities(0), effect(page, "ties", "right"), effect(page, "ties", "wrong")
    np.testing.assert_array_equal(right["delta0"], q["delta0"])
    np.testing.assert_array_equal(right["dw0"], q["dw0"])
    windows = q["z0"].reshape(12, 2, 12, 2, 4)
    is_maximum = (windows == windows.max((1, 3), keepdims=True)) & (windows > 0)
    expected = np.where(is_maximum, q["dx1"].reshape(12, 1, 12, 1, 4), 0).reshape(24, 24, 4)
    np.testing.assert_array_equal(wrong["delta0"], expected)
    places = (wrong["delta0"] != right["delta0"]).sum()
    assert places > 0 and f"Here {places:,} numbers of δ⁰ are wrong." in page.html


def test_without_the_half_zeros_send_nothing_back(page: Page):
    right, wrong = effect(page, "half", "right"), effect(page, "half", "wrong")
    differs = right["delta0"] != wrong["delta0"]
    assert differs.any() and not wrong["delta0"][differs].any()
    assert (right["db0"] != wrong["db0"]).any()
    assert "raw pixels" in page.html and "all biases 0" in page.html


def test_without_the_mean_the_step_is_longer_by_the_batch_size(page: Page):
    right, wrong = effect(page, "mean", "right"), effect(page, "mean", "wrong")
    # 64 float32 numbers are added up in two orders
    np.testing.assert_allclose(wrong["dw0"], 64 * right["dw0"], rtol=0, atol=1e-5 * np.abs(wrong["dw0"]).max())
