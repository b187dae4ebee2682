"""Promise: one mistake in a network of modules is told once, with the modules; a claim holds for any inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import Function

from compare import Case, Comparison, compare


class PassedReLU(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        return g


class LowReLU(PassedReLU):
    """Its mask is that of ``x > -0.5``."""

    @staticmethod
    def backward(ctx, g):
        return g * (ctx.saved_tensors[0] > -0.5)


def network(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 6), activation(), nn.Linear(6, 3))


def compared(function: type[Function]) -> Comparison:
    class Activation(nn.Module):
        def forward(self, x):
            return function.apply(x)

    torch.manual_seed(0)
    ours, native = network(Activation), network(nn.ReLU)
    case = Case.from_modules("network", ours, native, lambda: {"x": torch.randn(5, 4)}, kinks=True)
    return compare(case, dtypes=[torch.float64])


def test_a_mistake_of_several_modules_is_told_once():
    (finding,) = compared(PassedReLU).findings
    assert "the mask of relu in modules 1 and 3 (ReLU) is ignored" in finding.statement, finding
    assert all(name in finding.quantity for name in ("of x", "0.weight", "0.bias", "2.weight", "2.bias")), finding


@pytest.mark.slow
def test_a_mistake_without_a_name_is_searched_for_once_and_located():
    """No element of this network's inputs has x < -0.5: the mask is not called ignored for that."""
    findings = compared(LowReLU).findings
    assert {finding.kind for finding in findings} == {"unknown"}, findings
    behind = [finding for finding in findings if "is wrong as well; backward computes it after" in finding.statement]
    assert len(behind) == 1 and "gradient of 0.weight" in behind[0].quantity, findings
    located = [finding for finding in findings if "relu in module 3 (ReLU)" in finding.evidence]
    assert {finding.quantity for finding in located} == {"gradient of 2.weight", "gradient of 2.bias"}, findings
