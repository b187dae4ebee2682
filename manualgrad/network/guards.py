"""The conditions under which the layers of a model may run as one plan, all of them.

A plan computes what the layers would. Each guard below names the test that shows why it is needed; tests without a
file are in ``tests/network/test_plan_guards.py``. Where a guard fails, the model runs layer by layer, and the string
that the guard returns is the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from manualgrad import explanation
from manualgrad._torch_compat import (
    child_modules,
    has_global_hooks,
    has_hooks,
    is_forward_mode_active,
    own_parameters,
)
from manualgrad.network.kinds import KINDS
from manualgrad.network.layers import Conv, Dense, NetworkSpec, UnfusedLayer, fuse
from manualgrad.network.plan_interface import NetworkPlan
from manualgrad.network.planners import find_planner
from manualgrad.ops.differentiable import is_grad_recorded
from manualgrad.ops.precision import is_autocast_enabled
from manualgrad.tensor_checks import active_mode

_ORIGINAL_CALL = nn.Module.__call__
MAX_CACHED_NETWORKS = 256
_network_cache: dict[tuple[Any, ...], NetworkSpec | str] = {}
_MISSING: Any = object()
PlanAndParameters = tuple[NetworkPlan, list[Tensor]]


class PlannedModel(Protocol):
    """A model whose layers a plan can stand for."""

    def find_plan(self, x: Tensor) -> PlanAndParameters | str:
        """:func:`find_plan` for the model's layers."""
        ...


def explain(model: PlannedModel, x: Tensor) -> str | None:
    """Why the layers of ``model`` run one by one on ``x``; None if one plan runs them all."""
    usable = find_usable_plan(model, x)
    return usable if isinstance(usable, str) else None


def find_usable_plan(model: PlannedModel, x: Tensor) -> PlanAndParameters | str:
    """The plan that computes ``model(x)``, with the model's weights and biases, or the reason why none does."""
    planned = model.find_plan(x)
    if not isinstance(planned, str):
        planned = hooks_reason(model) or gradients_reason(x, planned[1]) or planned
    if explanation.records is not None and not torch.compiler.is_compiling():
        reason, computed_by = (planned, "its layers, one by one") if isinstance(planned, str) else ("", "one program")
        explanation.record(type(model).__name__, computed_by, reason, x)
    return planned


def find_plan(layers: Iterable[nn.Module | None], x: Tensor) -> PlanAndParameters | str:
    """The plan for ``layers`` on ``x``, (N, C_in, H, W), with the weights and biases that it reads, in their order.

    Returns the reason if there is none. Hooks and gradients are for :func:`find_usable_plan`.
    """
    # test_torch_func_differentiates_the_model, test_errors_are_those_of_the_layers
    # tests/ops/test_surroundings.py::test_the_compiled_network_has_the_gradients_of_the_eager_one
    mode = active_mode()
    if mode:
        return mode
    if not isinstance(x, Tensor):
        return "the input is no tensor"
    if x.dim() != 4:  # test_input_gradients_and_transforms_run_layer_by_layer
        return "the input is no batch of images"
    parameters: list[Tensor] = []
    key: list[Any] = [x.shape[1:]]
    reason = _read_layers(layers, key, parameters)
    if reason:
        return reason
    if nn.Module.__call__ is not _ORIGINAL_CALL:  # test_patched_call_of_all_modules_is_used
        return "nn.Module.__call__ was replaced"
    network = _network_cache.get(tuple(key))
    if network is None:
        if len(_network_cache) >= MAX_CACHED_NETWORKS:
            _network_cache.clear()
        network = _network_cache[tuple(key)] = _make_network(layers, x.shape[1:])
    if isinstance(network, str):
        return network
    get_plan = find_planner(x.device.type)
    if isinstance(get_plan, str):
        return get_plan
    plan = get_plan(network, x.shape[0])
    if isinstance(plan, str):
        return plan
    # tests/network/test_plan.py::test_integer_results_equal_the_formulas_exactly: any strides of x are right
    # test_input_gradients_and_transforms_run_layer_by_layer: other dtypes
    # tests/network/test_descent.py::test_changes_take_effect_at_the_next_step: a transposed weight
    if not plan.supports(x, parameters):
        return "the input or a parameter is no plain float32 tensor on one device, or a parameter is not contiguous"
    return plan, parameters


def _read_layers(layers: Iterable[nn.Module | None], key: list[Any], parameters: list[Tensor]) -> str | None:
    """Append what the layers depend on to ``key``, and their weights and biases to ``parameters``.

    Everything is read anew in each call: nothing tells of a change. Returns the reason why a plan cannot stand for
    the layers, or None.
    """
    for layer in layers:
        kind = None if layer is None else KINDS.get(type(layer))
        # test_changed_model_runs_layer_by_layer: replaced layer, subclass, layer None
        if layer is None or kind is None:
            return f"no kernel computes {type(layer).__name__}"
        attributes = vars(layer)
        # test_patched_class_forward_is_used; test_changed_model_runs_layer_by_layer: patched forward
        if type(layer).forward is not kind.forward or "forward" in attributes:
            return f"the forward of {type(layer).__name__} was replaced"
        if kind.describe is None:
            reason = _read_layers(child_modules(layer).values(), key, parameters)
            if reason:
                return reason
            continue
        config = [attributes.get(name, _MISSING) for name in kind.attributes]
        # test_changed_model_runs_layer_by_layer: stride as a list, subgradient as a tensor
        for value in config:
            if not _is_plain_constant(value):
                return f"an attribute of {type(layer).__name__} is no plain number"
        key += (type(layer), *config)
        if kind.has_parameters:
            own = own_parameters(layer)
            weight, bias = own.get("weight"), own.get("bias")
            # test_changed_model_runs_layer_by_layer: parametrization, no bias
            if weight is None or bias is None:
                return f"a {type(layer).__name__} has no weight or bias of its own"
            parameters += (weight, bias)
            key += (weight.shape, bias.shape)
    return None


def _is_plain_constant(value: object) -> bool:
    """Return True for None, a string, a number or a tuple of ints, whose equality means the same computation.

    A tensor or an instance of a subclass could equal a number and behave differently.
    """
    if type(value) is tuple:
        for item in value:  # noqa: SIM110 - all() takes three times as long, in every call of a model
            if type(item) is not int:
                return False
        return True
    return value is None or type(value) in (bool, int, float, str)


def may_have_plan(model: nn.Module) -> bool:
    """Return True if the layers of ``model`` are those of a plan, for images of some size."""
    layers = child_modules(model).values()
    if _read_layers(layers, [], []):
        return False
    network = _make_network(layers, torch.Size((0, 0, 0)))
    if isinstance(network, str):
        return False
    first, last = network.layers[0], network.layers[-1]
    return isinstance(first, Conv) and isinstance(last, Dense) and last.subgradient is None


def hooks_reason(model: PlannedModel) -> str | None:
    """Why hooks need the layers one by one, or None."""
    if has_global_hooks():  # test_global_module_hooks_run
        return "a hook is registered for all modules"
    # test_changed_model_runs_layer_by_layer: forward hook, backward hook
    return "a layer has a hook" if _any_has_hooks(child_modules(model).values()) else None  # type: ignore[arg-type]


def _any_has_hooks(layers: Iterable[nn.Module | None]) -> bool:
    for layer in layers:
        if layer is None:
            continue
        if has_hooks(layer):
            return True
        # tests/network/test_sequential.py::test_nested_sequentials_run_as_one_plan
        if isinstance(layer, nn.Sequential) and _any_has_hooks(child_modules(layer).values()):
            return True
    return False


def gradients_reason(x: Tensor, parameters: list[Tensor]) -> str | None:
    """Why the gradients that are needed are not those of a plan: of every parameter and of nothing else, or none."""
    # test_input_gradients_and_transforms_run_layer_by_layer
    if is_forward_mode_active() or is_autocast_enabled(x):
        return "forward mode or autocast is active"
    if not is_grad_recorded():
        return None
    if x.requires_grad:  # test_input_gradients_and_transforms_run_layer_by_layer
        return "the input needs a gradient"
    for parameter in parameters:
        if not parameter.requires_grad:  # test_changed_model_runs_layer_by_layer: frozen layer
            return "a parameter is frozen"
    return None


def guard_values(model: nn.Module) -> list[Any]:
    """The objects that the result of ``model.find_plan`` depends on, for a comparison by identity.

    The result stays valid for as long as all of them are the same objects:
    tests/network/test_descent.py::test_changes_take_effect_at_the_next_step.
    """
    values: list[Any] = [nn.Module.__call__, *map(vars(model).get, ("num_conv_blocks", "subgradient", "fused"))]
    for layer in child_modules(model).values():
        if layer is None:
            continue
        attributes, kind = vars(layer), KINDS.get(type(layer))
        values += (layer, type(layer), type(layer).forward, attributes.get("forward"))
        if kind is not None:
            values += [attributes.get(name) for name in kind.attributes]
            values += own_parameters(layer).values() if kind.has_parameters else ()
    return values


def _make_network(layers: Iterable[nn.Module | None], image_shape: torch.Size) -> NetworkSpec | str:
    """The network that the layers make, or the reason why they make none."""
    unfused: list[UnfusedLayer] = []
    reason = _describe_layers(layers, unfused)
    fused = reason or fuse(unfused)
    if isinstance(fused, str):
        return fused
    if not fused:
        return "there are no layers"
    return NetworkSpec((image_shape[0], image_shape[1], image_shape[2]), tuple(fused))


def _describe_layers(layers: Iterable[nn.Module | None], unfused: list[UnfusedLayer]) -> str | None:
    """Append the description of each layer to ``unfused``; return the reason if one has none."""
    for layer in layers:
        describe = KINDS[type(layer)].describe  # type: ignore[index]
        if describe is None:
            reason = _describe_layers(child_modules(layer).values(), unfused)  # type: ignore[arg-type]
            if reason:
                return reason
            continue
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if weight is not None and (weight.dim() not in (2, 4) or bias is None or bias.shape != weight.shape[:1]):
            return f"weight and bias of {type(layer).__name__} do not fit each other"
        description = describe(layer)
        if description is None:
            return f"no kernel computes a {type(layer).__name__} with these options"
        subgradient = getattr(description, "subgradient", None)
        if subgradient is not None and not 0 <= subgradient <= 1:
            return "a subgradient is no number from 0 to 1"
        unfused.append(description)
    return None
