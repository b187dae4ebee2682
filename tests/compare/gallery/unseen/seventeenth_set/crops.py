"""Crops and windows: the largest value in boxes, soft pooling, images enlarged by copies."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

BOXES = [(0, 0, 3, 1, 4), (1, 2, 5, 0, 2), (0, 1, 4, 2, 4), (1, 0, 2, 0, 3)]  # image, rows from and to, columns


def largest_in_boxes(x):
    return torch.stack([x[n, :, top:low, left:right].flatten(1).max(1).values for n, top, low, left, right in BOXES])


class LargestInBoxesFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return largest_in_boxes(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        grad = torch.zeros_like(x)
        for to_box, (n, top, low, left, right) in zip(g, BOXES, strict=True):
            crop = x[n, :, top:low, left:right].flatten(1)
            share = torch.zeros_like(crop).scatter(1, crop.argmax(1, keepdim=True), to_box[:, None])
            grad[n, :, top:low, left:right] += share.view(-1, low - top, right - left)
        return grad


class RoIMax(Function):
    """Max over each region of interest; keeps the position of the maximum like the CUDA kernel does."""

    @staticmethod
    def forward(ctx, feat):
        C, W = feat.size(1), feat.size(3)
        out = feat.new_empty(len(BOXES), C)
        argmax = torch.empty(len(BOXES), C, dtype=torch.long, device=feat.device)
        for r, (b, y1, y2, x1, x2) in enumerate(BOXES):
            out[r], idx = feat[b, :, y1:y2, x1:x2].reshape(C, -1).max(dim=1)
            argmax[r] = (y1 + idx // W) * W + x1 + idx % W
        ctx.save_for_backward(argmax)
        ctx.feat_shape = feat.shape
        return out

    @staticmethod
    def backward(ctx, grad_out):
        (argmax,) = ctx.saved_tensors
        grad = grad_out.new_zeros(ctx.feat_shape)
        planes = grad.flatten(2)
        for r, (b, *_) in enumerate(BOXES):
            planes[b].scatter_add_(1, argmax[r].unsqueeze(1), grad_out[r].unsqueeze(1))
        return grad


def soft_pool(x):
    n, c, h, w = x.shape
    windows = x.view(n, c, h // 2, 2, w // 2, 2)
    weights = windows.exp()
    return (weights * windows).sum((3, 5)) / weights.sum((3, 5))


class SoftPoolFunction(Function):
    @staticmethod
    def forward(ctx, x):
        n, c, h, w = x.shape
        windows = x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(3, 4).flatten(4)
        shares = windows.softmax(-1)
        pooled = (shares * windows).sum(-1)
        ctx.save_for_backward(windows, shares, pooled)
        return pooled

    @staticmethod
    def backward(ctx, g):
        windows, shares, pooled = ctx.saved_tensors
        grad = g[..., None] * shares * (1 + windows - pooled[..., None])
        n, c, rows, columns = pooled.shape
        return grad.view(n, c, rows, columns, 2, 2).transpose(3, 4).reshape(n, c, 2 * rows, 2 * columns)


class SoftPool2x2(Function):
    @staticmethod
    def forward(ctx, x):
        e = x.exp()
        mask = e.unfold(2, 2, 2).unfold(3, 2, 2).sum(dim=(4, 5))
        total = (e * x).unfold(2, 2, 2).unfold(3, 2, 2).sum(dim=(4, 5))
        ctx.save_for_backward(e, mask)
        return total / mask

    @staticmethod
    def backward(ctx, grad_output):
        e, mask = ctx.saved_tensors
        upsampled = grad_output / mask
        upsampled = upsampled.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return e * upsampled


def enlarged(image, gain):
    return gain * image.repeat_interleave(2, -2).repeat_interleave(2, -1)


class UpsampleNearest2x(Function):
    """Nearest-neighbour upsampling by 2 with a gain, on flat pixel indices."""

    @staticmethod
    def forward(ctx, image, gain):
        B, H, W = image.shape
        out = torch.arange(4 * H * W, device=image.device)
        row, col = out // (2 * W), out % (2 * W)
        src = (row // 2) * W + col // 2
        up = image.reshape(B, -1)[:, src].view(B, 2 * H, 2 * W)
        ctx.save_for_backward(image, gain)
        return gain * up

    @staticmethod
    def backward(ctx, grad_output):
        image, gain = ctx.saved_tensors
        B, H, W = image.shape
        out = torch.arange(4 * H * W, device=image.device)
        row = out // (2 * W)
        col = out - row * (2 * H)
        src = (row // 2) * W + (col // 2).clamp(0, W - 1)
        flat = grad_output.reshape(B, -1)
        grad_gain = (flat * image.reshape(B, -1)[:, src]).sum()
        grad_image = torch.zeros_like(image).view(B, -1).index_add_(1, src, gain * flat)
        return grad_image.view(B, H, W), grad_gain


OPERATIONS = [
    Operation(
        "largest value in boxes, width of the image",
        LargestInBoxesFunction,
        RoIMax,
        largest_in_boxes,
        lambda: {"x": torch.randn(2, 3, 5, 4)},
        named="the place in a box is split into row and column by the image's width, not by the box's",
        kinds=("permuted", "another operand", "only at some indices"),
        named_words=(r"\bW\b", r"width", r"x2 - x1"),
        located=(r"gradient of (x|feat)\b",),
    ),
    Operation(
        "soft pooling, weights as constants",
        SoftPoolFunction,
        SoftPool2x2,
        soft_pool,
        lambda: {"x": torch.randn(2, 2, 4, 6)},
        named="the part of the gradient through the exponential weights is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"constant", r"exp|weights"),
        located=(r"gradient of x\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "enlarged images, columns from the height",
            UpsampleNearest2x.apply,
            enlarged,
            lambda: {"image": torch.randn(2, 4, 3), "gain": torch.randn(())},
        ),
        named="the column of an output is its index less row times the height, where the width belongs",
        kinds=("permuted", "another operand", "only at some indices"),
        named_words=(r"\bH\b|\bW\b", r"height|width"),
        located=(r"gradient of image", r"gradient of gain"),
    ),
]
