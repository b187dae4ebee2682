"""Images: a level of a pyramid, moved pixels, slopes of brightness."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

EPS = 0.05
SOBEL_X = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))
SOBEL_Y = ((-1, -2, -1), (0, 0, 0), (1, 2, 1))


def halve(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def double(x):
    return x.repeat_interleave(2, 1).repeat_interleave(2, 2)


def pyramid_level(x):
    coarse = halve(x)
    return coarse, x - double(coarse)


class PyramidLevelFunction(Function):
    @staticmethod
    def forward(ctx, x):
        return pyramid_level(x)

    @staticmethod
    def backward(ctx, to_coarse, to_detail):
        return to_detail + double(to_coarse / 4 - halve(to_detail))


class LaplacianLevel(Function):
    @staticmethod
    def forward(ctx, image):
        n, h, w = image.shape
        low = image.reshape(n, h // 2, 2, w // 2, 2).mean(dim=(2, 4))
        return low, image - double(low)

    @staticmethod
    def backward(ctx, grad_low, grad_high):
        return grad_high + double(grad_low) / 4


def moved(image, flow):
    height, width = image.shape
    rows = (torch.arange(height)[:, None].to(flow) + flow[0]).clamp(0, height - 1)
    columns = (torch.arange(width).to(flow) + flow[1]).clamp(0, width - 1)
    top, left = (
        rows.detach().floor().clamp(max=height - 2).long(),
        columns.detach().floor().clamp(max=width - 2).long(),
    )
    down, right = rows - top, columns - left
    upper = image[top, left] * (1 - right) + image[top, left + 1] * right
    lower = image[top + 1, left] * (1 - right) + image[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


class MovedFunction(Function):
    @staticmethod
    def forward(ctx, image, flow):
        ctx.save_for_backward(image, flow)
        return moved(image, flow)

    @staticmethod
    def backward(ctx, g):
        image, flow = ctx.saved_tensors
        places, corners, offsets, inside = [], [], [], []
        for axis, size in enumerate(image.shape):
            steps = torch.arange(size).to(flow)
            place = (steps[:, None] if axis == 0 else steps) + flow[axis]
            inside.append((place > 0) & (place < size - 1))
            places.append(place.clamp(0, size - 1))
            corners.append(places[-1].floor().clamp(max=size - 2).long())
            offsets.append(places[-1] - corners[-1])
        (top, left), (down, right) = corners, offsets
        grad_image = torch.zeros_like(image)
        for row, of_row in ((top, 1 - down), (top + 1, down)):
            for column, of_column in ((left, 1 - right), (left + 1, right)):
                grad_image.index_put_((row, column), g * of_row * of_column, accumulate=True)
        down_slope = (image[top + 1, left] - image[top, left]) * (1 - right)
        down_slope = down_slope + (image[top + 1, left + 1] - image[top, left + 1]) * right
        right_slope = (image[top, left + 1] - image[top, left]) * (1 - down)
        right_slope = right_slope + (image[top + 1, left + 1] - image[top + 1, left]) * down
        return grad_image, g * torch.stack([down_slope * inside[0], right_slope * inside[1]])


class FlowWarp(Function):
    @staticmethod
    def forward(ctx, img, flow):
        h, w = img.shape
        gy, gx = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        y = (gy.to(flow) + flow[0]).clamp(0, h - 1)
        x = (gx.to(flow) + flow[1]).clamp(0, w - 1)
        y0 = y.floor().long().clamp(max=h - 2)
        x0 = x.floor().long().clamp(max=w - 2)
        wy, wx = y - y0, x - x0
        idx = torch.stack([y0 * w + x0, y0 * w + x0 + 1, (y0 + 1) * w + x0, (y0 + 1) * w + x0 + 1])
        corners = img.reshape(-1)[idx]
        weights = torch.stack([(1 - wy) * (1 - wx), (1 - wy) * wx, wy * (1 - wx), wy * wx])
        ctx.save_for_backward(idx, corners, weights, wy, wx)
        return (corners * weights).sum(dim=0)

    @staticmethod
    def backward(ctx, grad):
        idx, corners, weights, wy, wx = ctx.saved_tensors
        h, w = grad.shape
        grad_img = grad.new_zeros(h * w)
        grad_img.index_add_(0, idx.reshape(-1), (grad * weights).reshape(-1))
        a, b, c, d = corners
        grad_y = grad * ((c - a) * (1 - wx) + (d - b) * wx)
        grad_x = grad * ((b - a) * (1 - wy) + (d - c) * wy)
        return grad_img.view(h, w), torch.stack([grad_y, grad_x])


def correlate(x, kernel):
    height, width = x.shape[1] - 2, x.shape[2] - 2
    parts = [kernel[i][j] * x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return sum(parts)


def edge_strength(x):
    return torch.sqrt(correlate(x, SOBEL_X) ** 2 + correlate(x, SOBEL_Y) ** 2 + EPS)


def correlate_transposed(grad, kernel):
    n, height, width = grad.shape
    out = grad.new_zeros(n, height + 2, width + 2)
    for i in range(3):
        for j in range(3):
            out[:, i : i + height, j : j + width] += kernel[i][j] * grad
    return out


class SobelMagnitude(Function):
    @staticmethod
    def forward(ctx, x):
        dx = correlate(x, SOBEL_X)
        dy = correlate(x, SOBEL_Y)
        magnitude = torch.sqrt(dx.square() + dy.square() + EPS)
        ctx.save_for_backward(dx, dy, magnitude)
        return magnitude

    @staticmethod
    def backward(ctx, grad_out):
        dx, dy, magnitude = ctx.saved_tensors
        scaled = grad_out / magnitude
        return correlate_transposed(scaled * dx, SOBEL_Y) + correlate_transposed(scaled * dy, SOBEL_X)


OPERATIONS = [
    Operation(
        "level of a pyramid, coarse image inside of the details",
        PyramidLevelFunction,
        LaplacianLevel,
        pyramid_level,
        lambda: (torch.randn(2, 4, 6),),
        named="the details' gradient lacks its part through the coarse image that is subtracted",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of (x|image|input 0)",),
    ),
    Operation(
        "moved pixels, places outside of the image",
        MovedFunction,
        FlowWarp,
        moved,
        lambda: {"image": torch.randn(4, 5), "flow": torch.randn(2, 4, 5)},
        named="flow: places that the clamp moves to the border get a gradient; the mask of the clamp is left out",
        kinds=("only for some values", "only at borders", "only at some indices", "step left out"),
        named_words=(r"clamp|mask|inside|outside|bound", r"border", r"no gradient|too many|must be 0"),
        located=(r"gradient of flow",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "strength of edges, kernels exchanged",
            SobelMagnitude.apply,
            edge_strength,
            lambda: (torch.randn(2, 5, 6),),
        ),
        named="the two kernels are exchanged: the slope to the right goes back through the kernel of the one down",
        kinds=("swapped", "transposed", "not transposed", "another operand", "permuted"),
        named_words=(r"swap|exchang", r"SOBEL", r"transpos"),
        located=(r"gradient of (x|input 0)",),
    ),
]
