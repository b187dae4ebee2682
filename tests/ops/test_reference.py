"""The derivatives in ``manualgrad.reference`` agree with finite differences of its values."""

from __future__ import annotations

import pytest

from manualgrad.reference import operations as reference
from tests.ops.sheet_arrays import DIFFERENCE, POOLINGS, TARGETS, close, differences, distinct, random


def test_convolution_reference_agrees_with_finite_differences():
    x, w, stride = random(2, 5, 6, 2), random(3, 2, 2, 3, seed=1), (2, 3)
    delta = random(*reference.conv2d(x, w, None, stride).shape, seed=2)

    def total(x, w, b=None):
        return (delta * reference.conv2d(x, w, b, stride)).sum()

    close(reference.conv2d_grad_input(delta, w, x.shape, stride), differences(lambda x: total(x, w), x), DIFFERENCE)
    close(reference.conv2d_grad_weight(delta, x, w.shape, stride), differences(lambda w: total(x, w), w), DIFFERENCE)
    for b in (random(3, seed=3), random(*delta.shape[1:], seed=3)):  # one for each channel, one for each position
        numeric = differences(lambda b: total(x, w, b), b)
        close(reference.grad_bias(delta, b.shape), numeric, DIFFERENCE)


@pytest.mark.parametrize(("shape", "size", "stride"), POOLINGS)
def test_pooling_reference_agrees_with_finite_differences(shape, size, stride):
    x = distinct(*shape)
    delta = random(*reference.max_pool2d(x, size, stride).shape)
    numeric = differences(lambda x: (delta * reference.max_pool2d(x, size, stride)).sum(), x)
    close(reference.max_pool2d_backward(delta, x, size, stride), numeric, DIFFERENCE)


def test_flatten_reference_agrees_with_finite_differences():
    x, delta = random(2, 3, 2, 4), random(2, 24, seed=1)
    numeric = differences(lambda x: (delta * reference.flatten(x)).sum(), x)
    close(reference.unflatten(delta, (3, 2, 4)), numeric, DIFFERENCE)


def test_dense_reference_agrees_with_finite_differences():
    x, w, b, delta = random(3, 5), random(5, 4, seed=1), random(4, seed=2), random(3, 4, seed=3)

    def total(x, w, b):
        return (delta * reference.dense(x, w, b)).sum()

    close(reference.dense_grad_input(delta, w), differences(lambda x: total(x, w, b), x), DIFFERENCE)
    close(reference.dense_grad_weight(delta, x), differences(lambda w: total(x, w, b), w), DIFFERENCE)
    close(reference.grad_bias(delta, b.shape), differences(lambda b: total(x, w, b), b), DIFFERENCE)


def test_relu_reference_agrees_with_finite_differences_even_at_zero():
    z, delta = distinct(4, 5), random(4, 5)
    z[1] = 0  # where a central difference is the mean of both sides: the formula sheet's ½
    numeric = differences(lambda z: (delta * reference.relu(z)).sum(), z)
    close(reference.relu_backward(delta, z), numeric, DIFFERENCE)


def test_softmax_and_cost_references_agree_with_finite_differences():
    z, delta = 3 * random(3, 4), random(3, 4, seed=1)
    numeric = differences(lambda z: (delta * reference.softmax(z)).sum(), z)
    close(reference.softmax_backward(delta, z), numeric, DIFFERENCE)
    for y in TARGETS.values():
        numeric = differences(lambda z, y=y: reference.cost(z, y), z)
        close(reference.example_costs_gradient(z, y) / 3, numeric, DIFFERENCE)
