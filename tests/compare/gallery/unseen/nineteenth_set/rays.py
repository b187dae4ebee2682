"""Rays: an update of emission tomography, bright rays of several energies, detectors that miss, projections."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def emission_update(image, counts, system):
    return image * (system.T @ (counts / (system @ image))) / system.sum(0)


class EmissionUpdateFunction(Function):
    @staticmethod
    def forward(ctx, image, counts, system):
        ctx.save_for_backward(image, counts, system)
        return emission_update(image, counts, system)

    @staticmethod
    def backward(ctx, g):
        image, counts, system = ctx.saved_tensors
        expected, column_sums = system @ image, system.sum(0)
        ratio = counts / expected
        back = system.T @ ratio
        to_back = g * image / column_sums
        to_ratio = system @ to_back
        to_expected = -to_ratio * ratio / expected
        to_system = torch.outer(ratio, to_back) + torch.outer(to_expected, image) - to_back * back / column_sums
        return g * back / column_sums + system.T @ to_expected, to_ratio / expected, to_system


class MLEMStep(Function):
    @staticmethod
    def forward(ctx, x, y, A):
        forward_projection = A @ x
        ratio = y / forward_projection
        sensitivity = A.sum(dim=0)
        correction = (A.t() @ ratio) / sensitivity
        ctx.save_for_backward(x, A, forward_projection, ratio, sensitivity, correction)
        return x * correction

    @staticmethod
    def backward(ctx, grad_x_new):
        x, A, forward_projection, ratio, sensitivity, correction = ctx.saved_tensors
        grad_x = grad_x_new * correction
        grad_back = grad_x_new * x / sensitivity
        grad_ratio = A @ grad_back
        grad_y = grad_ratio / forward_projection
        grad_fp = -grad_ratio * ratio / forward_projection
        grad_x = grad_x + A.t() @ grad_fp
        grad_A = torch.outer(ratio, grad_back) + torch.outer(grad_fp, x)
        return grad_x, grad_y, grad_A


def bright_rays(lengths, absorption, spectrum):
    return -((spectrum * torch.exp(-lengths @ absorption)).sum(-1) / spectrum.sum()).log()


class BrightRaysFunction(Function):
    @staticmethod
    def forward(ctx, lengths, absorption, spectrum):
        ctx.save_for_backward(lengths, absorption, spectrum)
        return bright_rays(lengths, absorption, spectrum)

    @staticmethod
    def backward(ctx, g):
        lengths, absorption, spectrum = ctx.saved_tensors
        passed = torch.exp(-lengths @ absorption)
        share = spectrum * passed / (spectrum * passed).sum(-1, keepdim=True)
        to_depth = g[:, None] * share
        to_spectrum = -(to_depth / spectrum).sum(0) + g.sum() / spectrum.sum()
        return to_depth @ absorption.T, lengths.T @ to_depth, to_spectrum


class PolychromaticProjection(Function):
    """Lengths (rays, materials), attenuation (materials, energies), spectrum (energies)."""

    @staticmethod
    def forward(ctx, L, mu, S):
        transmission = torch.exp(-(L @ mu))
        I = transmission @ S  # noqa: E741
        I0 = S.sum()
        ctx.save_for_backward(L, mu, S, transmission, I, I0)
        return torch.log(I0) - torch.log(I)

    @staticmethod
    def backward(ctx, grad_p):
        L, mu, S, transmission, I, I0 = ctx.saved_tensors  # noqa: E741
        grad_I = -grad_p / I
        grad_S = transmission.t() @ grad_I
        grad_line = -torch.outer(grad_I, S) * transmission
        grad_L = grad_line @ mu.t()
        grad_mu = L.t() @ grad_line
        grad_S = grad_S + grad_p.mean() / I0
        return grad_L, grad_mu, grad_S


def counted(rate, dead_time, background):
    true = rate + background
    return true * torch.exp(-true * dead_time)


class CountedFunction(Function):
    @staticmethod
    def forward(ctx, rate, dead_time, background):
        ctx.save_for_backward(rate, dead_time, background)
        return counted(rate, dead_time, background)

    @staticmethod
    def backward(ctx, g):
        rate, dead_time, background = ctx.saved_tensors
        true = rate + background
        alive = torch.exp(-true * dead_time)
        to_true = g * alive * (1 - true * dead_time)
        return to_true, (-g * true**2 * alive).sum(0), to_true.sum((0, 1), keepdim=True)


class ParalyzableDetector(Function):
    @staticmethod
    def forward(ctx, rate, tau, background):
        n = rate + background
        m = n * torch.exp(-n * tau)
        ctx.save_for_backward(n, m, tau)
        return m

    @staticmethod
    def backward(ctx, grad_m):
        n, m, tau = ctx.saved_tensors
        grad_n = grad_m * m * (1 / n - tau)
        grad_tau = -(grad_m * n * m).sum(dim=0) if ctx.needs_input_grad[1] else None
        grad_background = grad_n.sum().reshape(1, 1) if ctx.needs_input_grad[1] else None
        return grad_n if ctx.needs_input_grad[0] else None, grad_tau, grad_background


def projections(image):
    size = image.shape[0]
    place = torch.arange(size)
    diagonal = (place[:, None] + place[None, :]).flatten()
    slanted = torch.zeros(2 * size - 1).to(image).index_add(0, diagonal, image.flatten())
    return torch.cat([image.sum(0), image.sum(1), slanted])


class ProjectionsFunction(Function):
    @staticmethod
    def forward(ctx, image):
        ctx.size = image.shape[0]
        return projections(image)

    @staticmethod
    def backward(ctx, g):
        n = ctx.size
        place = torch.arange(n)
        return g[None, :n] + g[n : 2 * n, None] + g[2 * n :][place[:, None] + place[None, :]]


class ThreeViewRadon(Function):
    """Sums of a square image along columns, rows and anti-diagonals."""

    @staticmethod
    def forward(ctx, img):
        n = img.shape[0]
        ctx.n = n
        flipped = img.flip(1)
        slanted = [flipped.diagonal(offset).sum() for offset in range(n - 1, -n, -1)]
        return torch.cat([img.sum(dim=0), img.sum(dim=1), torch.stack(slanted)])

    @staticmethod
    def backward(ctx, grad_sino):
        n = ctx.n
        cols, rows, slanted = grad_sino.split([n, n, 2 * n - 1])
        grad_flipped = grad_sino.new_zeros(n, n)
        for k, offset in enumerate(range(n - 1, -n, -1)):
            grad_flipped.diagonal(offset).add_(slanted[k])
        return cols.unsqueeze(0) + rows.unsqueeze(1) + grad_flipped


OPERATIONS = [
    Operation(
        "update of emission tomography, sum of a column",
        EmissionUpdateFunction,
        MLEMStep,
        emission_update,
        lambda: {"image": 0.3 + torch.rand(3), "counts": 0.3 + torch.rand(5), "system": 0.1 + torch.rand(5, 3)},
        named="system: the part through the sums of its columns, by which the update is divided, is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"\bsum\b|sensitivity", r"divisor|denominator|divi", r"constant"),
        located=(r"gradient of (system|A)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "rays of several energies, mean for the sum",
        BrightRaysFunction,
        PolychromaticProjection,
        bright_rays,
        lambda: {"lengths": torch.rand(4, 2), "absorption": 0.2 + torch.rand(2, 3), "spectrum": 0.3 + torch.rand(3)},
        named="spectrum: in the part through its sum the rays are averaged, where they are to be added",
        kinds=("factor of one term", "wrong sum", "constant factor", "missing term"),
        named_words=(r"\bmean\b", r"factor", r"1/4|0\.25|times 4", r"grad_p"),
        located=(r"gradient of (spectrum|S)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "detectors that miss, the other input's question",
        CountedFunction,
        ParalyzableDetector,
        counted,
        lambda: {"rate": 0.3 + torch.rand(3, 4), "dead_time": 0.2 + torch.rand(4), "background": torch.rand(1, 1)},
        named="background: None if the dead time wants no gradient; needs_input_grad is asked at the wrong index",
        kinds=("depends on which inputs require a gradient", "none"),
        named_words=(r"needs_input_grad|require",),
        located=(r"gradient of background\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "projections along diagonals, image not turned back",
        ProjectionsFunction,
        ThreeViewRadon,
        projections,
        lambda: {"image": torch.randn(4, 4)},
        named="the part along the diagonals is that of the flipped image and is not flipped back",
        kinds=("flipped", "permuted", "missing term", "another operand"),
        named_words=(r"flip|revers|mirror",),
        located=(r"gradient of (image|img)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
