"""Images: white balance by means of colours, pooling by a mixture and by a norm, depth moved to space."""

from __future__ import annotations

import torch
from torch.autograd import Function
from torch.nn import functional as F

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

BLOCK, P = 2, 3


def white_balance(image):
    means = image.mean((2, 3), keepdim=True)
    return image * means.mean(1, keepdim=True) / means


class WhiteBalanceFunction(Function):
    @staticmethod
    def forward(ctx, image):
        means = image.mean((2, 3), keepdim=True)
        grey = means.mean(1, keepdim=True)
        ctx.save_for_backward(image, means, grey)
        return image * grey / means

    @staticmethod
    def backward(ctx, g):
        image, means, grey = ctx.saved_tensors
        to_gain = (g * image).sum((2, 3), keepdim=True)
        to_grey = (to_gain / means).sum(1, keepdim=True)
        to_means = to_grey / image.size(1) - to_gain * grey / means.square()
        return g * grey / means + to_means / (image.size(2) * image.size(3))


class GrayWorld(Function):
    """Scale each colour so that all have the same mean."""

    @staticmethod
    def forward(ctx, img):
        mu = img.flatten(2).mean(dim=2)
        gain = mu.mean(dim=1, keepdim=True) / mu
        ctx.save_for_backward(img, mu, gain)
        return img * gain[:, :, None, None]

    @staticmethod
    def backward(ctx, grad_output):
        img, mu, gain = ctx.saved_tensors
        h, w = img.shape[2:]
        grad_gain = (grad_output * img).flatten(2).sum(dim=2)
        grad_mu = -grad_gain * gain / mu
        return grad_output * gain[:, :, None, None] + grad_mu[:, :, None, None] / (h * w)


def blocks_of(x):
    B, C, H, W = x.shape
    x = x.reshape(B, C, H // BLOCK, BLOCK, W // BLOCK, BLOCK)
    return x.permute(0, 1, 2, 4, 3, 5).flatten(4)


def image_of(blocks):
    B, C, h, w, _ = blocks.shape
    return blocks.view(B, C, h, w, BLOCK, BLOCK).permute(0, 1, 2, 4, 3, 5).reshape(B, C, h * BLOCK, w * BLOCK)


def mixed_pool(x, a):
    a = a[:, None, None]
    blocks = blocks_of(x)
    return a * blocks.max(-1).values + (1 - a) * blocks.mean(-1)


class MixedPoolFunction(Function):
    @staticmethod
    def forward(ctx, x, a):
        blocks = blocks_of(x)
        largest, place = blocks.max(-1)
        ctx.save_for_backward(a, place, largest - blocks.mean(-1))
        return mixed_pool(x, a)

    @staticmethod
    def backward(ctx, g):
        a, place, difference = ctx.saved_tensors
        weight = a[:, None, None, None] * F.one_hot(place, BLOCK**2) + (1 - a[:, None, None, None]) / BLOCK**2
        return image_of(g[..., None] * weight), (g * difference).sum((0, 2, 3))


class MixedPool2d(Function):
    """Lee et al.: alpha * max + (1 - alpha) * average, with a learned alpha for each channel."""

    @staticmethod
    def forward(ctx, x, alpha):
        blocks = blocks_of(x)
        hi, idx = blocks.max(dim=-1, keepdim=True)
        lo = blocks.mean(dim=-1, keepdim=True)
        mix = alpha.view(1, -1, 1, 1, 1)
        ctx.save_for_backward(hi, idx, mix)
        return (mix * hi + (1 - mix) * lo).squeeze(-1)

    @staticmethod
    def backward(ctx, grad_output):
        hi, idx, mix = ctx.saved_tensors
        grad = grad_output.unsqueeze(-1)
        n = BLOCK * BLOCK
        blocks = ((1 - mix) * grad / n).expand(*grad.shape[:-1], n).clone()
        blocks.scatter_add_(-1, idx, mix * grad)
        grad_alpha = (grad * hi).sum(dim=(0, 2, 3, 4))
        return image_of(blocks), grad_alpha


def norm_pool(x):
    return blocks_of(x).abs().pow(P).sum(-1).pow(1 / P)


class LPPool(Function):
    @staticmethod
    def forward(ctx, x):
        blocks = blocks_of(x)
        out = (blocks.abs() ** P).sum(dim=-1) ** (1.0 / P)
        ctx.save_for_backward(blocks, out)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        blocks, out = ctx.saved_tensors
        ratio = blocks / out.unsqueeze(-1)
        return image_of(grad_out.unsqueeze(-1) * ratio ** (P - 1))


def depth_to_space(x):
    B, C, H, W = x.shape
    x = x.reshape(B, BLOCK, BLOCK, C // BLOCK**2, H, W)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(B, C // BLOCK**2, H * BLOCK, W * BLOCK)


class DepthToSpace(Function):
    """The order of TensorFlow: the place in the block comes before the channel."""

    @staticmethod
    def forward(ctx, x):
        ctx.in_shape = x.shape
        return depth_to_space(x)

    @staticmethod
    def backward(ctx, grad):
        B, C, H, W = ctx.in_shape
        grad = grad.reshape(B, C // BLOCK**2, H, BLOCK, W, BLOCK)
        return grad.permute(0, 1, 3, 5, 2, 4).reshape(B, C, H, W)


OPERATIONS = [
    Operation(
        "white balance, mean of all colours kept fixed",
        WhiteBalanceFunction,
        GrayWorld,
        white_balance,
        lambda: {"image": 0.2 + torch.rand(2, 3, 4, 4)},
        named="the gain depends on the mean of every colour through the common mean, and that term is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"grad_mu|\bgain\b|grey", r"constant"),
        located=(r"gradient of (image|img)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "mixture of pools, weight without the average",
        MixedPoolFunction,
        MixedPool2d,
        mixed_pool,
        lambda: {"x": torch.randn(2, 3, 4, 6), "a": torch.rand(3)},
        named="the weight's gradient has the maximum alone as its factor; the average is not subtracted",
        kinds=("missing term", "another operand", "step left out"),
        named_words=(r"missing", r"\bmean\b|average|\blo\b"),
        located=(r"gradient of (a|alpha)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "norm of each block, sign of an even power",
            LPPool.apply,
            norm_pool,
            lambda: {"x": torch.randn(2, 3, 4, 4)},
            whole_numbers=False,
        ),
        named="the sign of the elements is lost in an even power, so negative elements get the opposite gradient",
        kinds=("only for some values", "flipped", "step left out", "factor by element", "another operand"),
        named_words=(r"\bsign\b|\bsgn\b|\babs\b", r"negative|< ?0|below 0"),
        located=(r"gradient of x\b",),
    ),
    WrongFunction(
        Case(
            "depth moved to space, channel before the place",
            DepthToSpace.apply,
            depth_to_space,
            lambda: {"x": torch.randn(2, 12, 3, 2)},
        ),
        named="backward returns the channels in the order in which the channel comes before the place in a block",
        kinds=("permuted", "transposed", "swapped"),
        named_words=(r"permut", r"\border\b|transpos|swapped", r"channel"),
        located=(r"gradient of x\b",),
    ),
]
