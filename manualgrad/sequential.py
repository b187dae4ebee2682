"""``Sequential``: an ``nn.Sequential`` whose layers run as one program where kernels compute them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from manualgrad._torch_compat import child_modules
from manualgrad.network import call_chains, guards, kinds
from manualgrad.network.function import logits_apply


class Sequential(nn.Sequential):
    """``torch.nn.Sequential``, which runs its layers as one program of kernels where these compute all of them.

    The layers, from ``manualgrad.nn`` or :func:`manualgrad.from_torch`, are convolutions without groups, each with
    ReLU, with ReLU and max pooling, with max pooling, or alone; then ``Flatten``; then dense layers with ReLU between
    them. Input and parameters are contiguous float32, on the CPU or on CUDA. Any other list runs layer by layer, as
    in ``nn.Sequential``, and gives the same numbers up to rounding. :func:`manualgrad.network.guards.explain` says
    why. A ``Conv2d`` or ``Linear`` of :func:`manualgrad.from_torch` and the ``ReLU`` behind it are computed as one
    then, and a ``ReLU`` before a ``MaxPool2d`` after it. So are a ``Conv2d`` and a ``ReLU`` of ``manualgrad.nn`` on
    CUDA. Each layer runs by itself where a hook, a tracer or a replaced forward could see the calls
    (``network/call_chains.py``).

    Everything else is as in ``nn.Sequential``: indices, slices, names, state dicts, hooks, copies, tracing.
    """

    def forward(self, input: Any) -> Any:
        """The output of the last layer."""
        usable = guards.find_usable_plan(self, input)
        if isinstance(usable, str):
            return call_chains.run_layers(child_modules(self).values(), input)
        return logits_apply(input, *usable)

    def find_plan(self, x: Tensor) -> guards.PlanAndParameters | str:
        """The plan for ``x`` with the parameters that it reads, or the reason why there is none."""
        return guards.find_plan(child_modules(self).values(), x)


kinds.register(Sequential, None)
