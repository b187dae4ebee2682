"""Light, sound, volumes, throws: a refracted ray, pitch of a moving source, volumes of tetrahedra, a throw."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

SPEED = 343.0
G = 9.81


def refracted_angle(angle, n1, n2):
    return torch.asin(n1 / n2 * angle.sin())


class RefractedAngleFunction(Function):
    @staticmethod
    def forward(ctx, angle, n1, n2):
        s = n1 / n2 * angle.sin()
        ctx.save_for_backward(angle, n1, n2, s)
        return s.asin()

    @staticmethod
    def backward(ctx, g):
        angle, n1, n2, s = ctx.saved_tensors
        gs = g / (1 - s * s).sqrt()
        return gs * n1 / n2 * angle.cos(), (gs * angle.sin()).sum() / n2, -(gs * s).sum() / n2


class SnellRefraction(Function):
    """Angle of a ray behind the surface between two media (no total reflection)."""

    @staticmethod
    def forward(ctx, theta, n1, n2):
        sin_out = n1 * torch.sin(theta) / n2
        out = torch.asin(sin_out)
        ctx.save_for_backward(theta, n1, n2, out)
        return out

    @staticmethod
    def backward(ctx, grad_output):
        theta, n1, n2, out = ctx.saved_tensors
        grad_sin = grad_output / torch.sqrt(1 - out**2)
        grad_theta = grad_sin * n1 / n2 * torch.cos(theta)
        grad_n1 = (grad_sin * torch.sin(theta) / n2).sum()
        grad_n2 = -(grad_sin * n1 * torch.sin(theta) / n2**2).sum()
        return grad_theta, grad_n1, grad_n2


def moving_pitch(f, v_ear, v_source):
    return f * (SPEED + v_ear) / (SPEED - v_source)


class MovingPitchFunction(Function):
    @staticmethod
    def forward(ctx, f, v_ear, v_source):
        ctx.save_for_backward(f, v_ear, v_source)
        return moving_pitch(f, v_ear, v_source)

    @staticmethod
    def backward(ctx, g):
        f, v_ear, v_source = ctx.saved_tensors
        d = SPEED - v_source
        return g * (SPEED + v_ear) / d, g * f / d, g * f * (SPEED + v_ear) / d / d


class DopplerShift(Function):
    """Frequency that a listener hears; both velocities count as positive towards each other."""

    @staticmethod
    def forward(ctx, freq, v_listener, v_source):
        num = SPEED + v_listener
        den = SPEED - v_source
        ctx.save_for_backward(freq, num, den)
        return freq * num / den

    @staticmethod
    def backward(ctx, grad_output):
        freq, num, den = ctx.saved_tensors
        grad_freq = grad_output * num / den
        grad_listener = grad_output * freq / den
        grad_source = -grad_output * freq * num / den**2
        return grad_freq, grad_listener, grad_source


def tetrahedra(p):
    a, b, c = (p[:, 1:] - p[:, :1]).unbind(1)
    return (a * torch.linalg.cross(b, c)).sum(1).abs() / 6


class TetrahedraFunction(Function):
    @staticmethod
    def forward(ctx, p):
        a, b, c = (p[:, 1:] - p[:, :1]).unbind(1)
        triple = (a * torch.linalg.cross(b, c)).sum(1)
        ctx.save_for_backward(a, b, c, triple)
        return triple.abs() / 6

    @staticmethod
    def backward(ctx, g):
        a, b, c, triple = ctx.saved_tensors
        cross = torch.linalg.cross
        ends = torch.stack([cross(b, c), cross(c, a), cross(a, b)], 1) * (g * triple.sign() / 6)[:, None, None]
        return torch.cat([-ends.sum(1, keepdim=True), ends], 1)


class TetVolume(Function):
    """Volumes of tetrahedra with corners (B, 4, 3)."""

    @staticmethod
    def forward(ctx, verts):
        a, b, c = verts[:, 1] - verts[:, 0], verts[:, 2] - verts[:, 0], verts[:, 3] - verts[:, 0]
        ctx.save_for_backward(a, b, c)
        return torch.abs(torch.sum(a * torch.cross(b, c, dim=1), dim=1)) / 6.0

    @staticmethod
    def backward(ctx, grad_vol):
        a, b, c = ctx.saved_tensors
        scale = grad_vol.unsqueeze(1) / 6.0
        grad_a = scale * torch.cross(b, c, dim=1)
        grad_b = scale * torch.cross(c, a, dim=1)
        grad_c = scale * torch.cross(a, b, dim=1)
        return torch.stack((-(grad_a + grad_b + grad_c), grad_a, grad_b, grad_c), dim=1)


def length_of_throw(speed, angle, height):
    up = speed * angle.sin()
    return speed * angle.cos() * (up + (up**2 + 2 * G * height).sqrt()) / G


class LengthOfThrowFunction(Function):
    @staticmethod
    def forward(ctx, speed, angle, height):
        up = speed * angle.sin()
        root = (up**2 + 2 * G * height).sqrt()
        ctx.save_for_backward(speed, angle, up, root)
        return speed * angle.cos() * (up + root) / G

    @staticmethod
    def backward(ctx, g):
        speed, angle, up, root = ctx.saved_tensors
        along, time = speed * angle.cos(), (up + root) / G
        gu = g * along / G * (1 + up / root)
        return g * angle.cos() * time + gu * angle.sin(), gu * along - g * up * time, g * along / root


class ShotRange(Function):
    """Range of a shot that starts above the ground."""

    @staticmethod
    def forward(ctx, v, theta, h):
        vx, vy = v * torch.cos(theta), v * torch.sin(theta)
        root = torch.sqrt(vy * vy + 2 * G * h)
        ctx.save_for_backward(theta, vx, vy, root)
        return vx * (vy + root) / G

    @staticmethod
    def backward(ctx, grad_output):
        theta, vx, vy, root = ctx.saved_tensors
        grad_vx = grad_output * (vy + root) / G
        grad_root = grad_output * vx / G
        grad_inside = grad_root / (2 * root)
        grad_vy = grad_output * vx / G + grad_inside * vy
        grad_v = grad_vx * torch.cos(theta) + grad_vy * torch.sin(theta)
        grad_theta = grad_vy * vx - grad_vx * vy
        return grad_v, grad_theta, grad_inside * 2 * G


OPERATIONS = [
    Operation(
        "refracted ray, sine of the result",
        RefractedAngleFunction,
        SnellRefraction,
        refracted_angle,
        lambda: {"angle": torch.rand(6) * 2 - 1, "n1": torch.rand(()) * 0.3 + 1, "n2": torch.rand(()) * 0.3 + 1.3},
        named="forward saves the angle behind the surface; the derivative of asin needs its sine under the root",
        kinds=("another operand", "wrong intermediate value", "step left out", "factor by element"),
        named_words=(r"\bout\b", r"sin_out|\bsin\b", r"asin|cos"),
        located=(r"gradients? of (angle|theta|n1|n2)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "pitch of a moving source, sign",
        MovingPitchFunction,
        DopplerShift,
        moving_pitch,
        lambda: {"f": torch.rand(5) + 1, "v_ear": 50 * torch.randn(5), "v_source": 50 * torch.rand(5)},
        named="v_source: the sign is wrong: den falls with v_source, and two minus signs make a plus",
        kinds=("flipped",),
        named_words=(r"sign|negat|minus|flipped",),
        located=(r"gradient of v_source\b",),
    ),
    Operation(
        "volumes of tetrahedra, sign of the triple product",
        TetrahedraFunction,
        TetVolume,
        tetrahedra,
        lambda: {"p": torch.randn(6, 4, 3)},
        named="the absolute value is not differentiated: where the triple product is negative, the sign is wrong",
        kinds=("only for some values", "step left out", "flipped", "only at some indices", "factor by element"),
        named_words=(r"sign|negative|flipped", r"\babs\b|absolute"),
        located=(r"gradient of (p|verts)\b|\bp\b.*gradient",),
    ),
    Operation(
        "length of a throw, square under the root",
        LengthOfThrowFunction,
        ShotRange,
        length_of_throw,
        lambda: {"speed": torch.rand(5) * 4 + 3, "angle": torch.rand(5) + 0.2, "height": torch.rand(5) + 1},
        named="speed, angle: the derivative of vy^2 under the root is 2 vy; the factor 2 is missing in grad_vy",
        kinds=("factor of one term", "missing term", "step left out", "constant factor"),
        named_words=(r"\b2\b|twice|half|0\.5", r"grad_vy|grad_inside"),
        located=(r"gradients? of (speed|v|angle|theta)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
