"""The planner of each type of device. Triton is imported when the first network on CUDA asks for a plan."""

from __future__ import annotations

from collections.abc import Callable

from manualgrad.cuda.launch import why_not_installed
from manualgrad.network import plan
from manualgrad.network.layers import NetworkSpec
from manualgrad.network.plan_interface import NetworkPlan

# From a network and a batch size to the plan, or the reason why there is none.
Planner = Callable[[NetworkSpec, int], NetworkPlan | str]

PLANNERS: dict[str, Planner] = {"cpu": plan.get_plan}


def find_planner(device: str) -> Planner | str:
    """The planner for tensors on this type of device, or the reason why there is none."""
    if device == "cuda" and device not in PLANNERS:
        if reason := why_not_installed():
            return reason
        from manualgrad.network import cuda_plan

        PLANNERS[device] = cuda_plan.get_plan
    return PLANNERS.get(device, f"no kernels compute networks on {device}")
