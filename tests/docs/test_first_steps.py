"""Promise: docs/first-steps.md computes what the loops compute, and its picture shows these numbers."""

from __future__ import annotations

import numpy as np
import pytest

from manualgrad.reference import network as reference_network
from scripts.first_steps_figure import PAGE, draw_figure, values_of_the_page
from tests.docs.code_blocks import check


@pytest.fixture(scope="module")
def names():
    return values_of_the_page()


def test_the_page_computes_what_the_loops_compute(names):
    weights, biases = [names["w"][:, :, None, None], names["v"][None]], [np.array([names["b"]]), names["c"]]
    zs, xs = reference_network.forward(names["x"][None, :, :, None], weights, biases)
    deltas, *updates = reference_network.backpropagate(zs, xs, names["y"][None], weights, biases, eta=-1)
    np.testing.assert_allclose(names["z"], zs[0][0, :, :, 0], rtol=1e-15)
    np.testing.assert_allclose(names["s"], xs[2][0], rtol=1e-15)
    np.testing.assert_allclose(names["g_logits"], deltas[1][0], rtol=1e-14)
    np.testing.assert_allclose(names["g_z"], deltas[0][0, :, :, 0], rtol=1e-14)
    ours = (names["g_w"], names["g_v"]), (names["g_b"], names["g_c"])
    for gradients, of_loops in zip(ours, updates, strict=True):
        for gradient, of_loop in zip(gradients, of_loops, strict=True):
            np.testing.assert_allclose(np.ravel(gradient), of_loop.ravel(), rtol=1e-14)


def test_a_rate_of_one_half_makes_every_z_negative_and_the_gradient_zero():
    """The page says so; with its own rate of 0.1 one z stays positive."""
    text = PAGE.read_text(encoding="utf-8").partition("## The same in PyTorch")[0]
    assert (check(text, PAGE.name)["z"] > 0).sum() == 1
    text = text.replace("eta = 0.1", "eta = 0.5").replace("It prints:", "")
    assert (check(text, PAGE.name)["z"] < 0).all()


def test_the_picture_shows_the_numbers_of_the_page(names):
    shown = [text.get_text().replace("−", "-") for text in draw_figure(names).axes[0].texts]
    for name in ("x", "w", "z", "r", "p", "logits", "s", "g_w", "g_z", "g_r", "g_p", "g_logits"):
        assert {f"{value:.4g}" for value in np.ravel(names[name])} <= set(shown)
    assert f"J = {names['cost']:.4g}" in shown
