"""Arrays in the layouts of the formula sheet (docs/equations.md) and of PyTorch, and finite differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from manualgrad.reference import operations as reference

PACKAGE = Path(reference.__file__).parents[1]

# Sums of N products in two orders differ by at most 2Nε times the sum of the absolute values, ε = 1.1e-16. Here N is
# at most 36, of products below 1, and up to 646 in the networks, where the absolute values sum to less than 3: 4e-13
# in the worst case (measured: 2e-15). The error of a wrong index, sign or factor is orders of magnitude larger.
ROUNDING = 1e-12

# The error of a central difference is h² f‴/6 + ε f/h. With h = 1e-5 and f and f‴ up to 10, each is 2e-10 at most
# (measured: 6e-11).
STEP, DIFFERENCE = 1e-5, 1e-9


# ------------------------------------------------------------------------------------------- helpers


def rng(seed=0):
    return np.random.default_rng(seed)


def random(*shape, seed=0):
    """Random values between −1 and 1, all different, so that an exchange of two indices is noticed."""
    return rng(seed).uniform(-1, 1, shape)


def distinct(*shape, seed=0):
    """Values at least 0.01 from each other and from 0, so that no finite difference crosses a tie or a kink."""
    count = int(np.prod(shape))
    return (rng(seed).permutation(np.arange(count) - count // 2).reshape(shape) + 0.5) / 50


def tensor(array):
    return torch.from_numpy(array.copy()).requires_grad_()


def image(array):
    """The formula sheet's (N, H, W, C) as PyTorch's (N, C, H, W)."""
    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy()).requires_grad_()


def kernel(array):
    """The formula sheet's (kH, kW, C_in, C_out) as PyTorch's (C_out, C_in, kH, kW)."""
    return torch.from_numpy(array.transpose(3, 2, 0, 1).copy()).requires_grad_()


def sheet(values):
    """A tensor in the formula sheet's layout: images as (N, H, W, C), other tensors unchanged."""
    values = values.detach()
    return (values.permute(0, 2, 3, 1) if values.dim() == 4 else values).numpy()


def sheet_kernel(values):
    return values.detach().permute(2, 3, 1, 0).numpy()


def gradients(output, delta, *inputs):
    """Σ δ ∂output/∂input for each input; δ has the formula sheet's layout."""
    delta = image(delta) if delta.ndim == 4 else tensor(delta)
    return torch.autograd.grad(output, inputs, delta.detach())


def close(ours, expected, within=ROUNDING):
    assert ours.dtype == expected.dtype == np.float64
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= within


def differences(function, x):
    """∂f/∂x by central differences, where f = ``function`` returns one number."""
    slope = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        ends = []
        for step in (STEP, -STEP):
            moved = x.copy()
            moved[index] += step
            ends.append(function(moved))
        slope[index] = (ends[0] - ends[1]) / (2 * STEP)
    return slope


# --------------------------------------------------------------------------------- Max-pooling, (4)

# (x, size, stride): the formula sheet's windows; overlapping ones, not square; windows with gaps between them.
POOLINGS = [((2, 7, 8, 3), (2, 2), (2, 2)), ((2, 7, 6, 2), (3, 2), (2, 1)), ((2, 8, 9, 2), (2, 2), (3, 4))]


# ------------------------------------------------------------------------ Cross-entropy, (13) to (15)

# Three examples of four classes: targets that sum to 1, and to 0.3, 2.4, 0.
TARGETS = {
    "one class": np.eye(4)[[2, 0, 3]],
    "sum 1": np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0, 0.05, 0.25], [0.25, 0.25, 0, 0.5]]),
    "any sum": np.array([[0.1, 0, 0.2, 0], [0.9, 0.5, 0.3, 0.7], [0, 0, 0, 0]]),
}
