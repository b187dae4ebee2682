"""Functions that do more than compute, each with a mistake that one edit would mend."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd import Function

FOLDER = ""
THREADS = torch.get_num_threads()


class Square(Function):
    """x squared; backward is three times g x, and not two."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x


class WritesAFile(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        step = 1
        with open(f"{FOLDER}/step{step}.txt", "w") as file:
            print(step, file=file)
        return 3 * g * x


class SavesATensor(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        step = 1
        torch.save(x, f"{FOLDER}/step{step}.pt")
        return 3 * g * x


def write_rarely(step):
    """Another function writes, and does not run as long as nobody edits the condition."""
    if step > 1:
        with open(f"{FOLDER}/step{step}.txt", "w") as file:
            print(step, file=file)


class MightWrite(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        step = 1
        if step > 5:
            write_rarely(step)
        return 3 * g * x


class SetsThreads(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        torch.set_num_threads(THREADS)
        return 3 * g * x


class SetsTheSeed(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        torch.manual_seed(0)
        return 3 * g * x


def mask_of(x):
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) > 0.5


def dropped_out(x):
    return 2 * x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) > 0.5)


class DropsOut(Function):
    """The elements that are left count twice; in backward once."""

    @staticmethod
    def forward(ctx, x):
        ctx.mask = mask_of(x)
        return 2 * x * ctx.mask

    @staticmethod
    def backward(ctx, g):
        mask = ctx.mask
        return g * mask


class KeepsAnAttribute(nn.Module):
    """A module that notes in forward what it was given, and has the wrong output."""

    def __init__(self):
        super().__init__()
        self.scale = 1.5

    def forward(self, x):
        self.scale = 1.5
        return 3 * x * x
