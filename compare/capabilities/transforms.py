"""Transforms that PyTorch applies to functions: torch.func, vmap, compile, autocast, checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, func
from torch.utils.checkpoint import checkpoint

from compare.capabilities.assertions import CheckFailed, assert_close, error_summary
from compare.capabilities.function_under_test import (
    FunctionUnderTest,
    input_grads,
    output_names,
    random_grad_outputs,
    random_like,
    run_forward_backward,
)
from compare.capabilities.storage_tracker import StorageTracker

BATCH = 3
BACKEND = "aot_eager"
AUTOCAST_DTYPES = {"cpu": torch.bfloat16}  # float16 on other devices
# bfloat16 has 8 significant bits, and rounding may change the sign at a ReLU or the index of a maximum. So the error
# is judged by the norm of all gradients together.
AUTOCAST_RTOL = 0.1


def func_grad(tested: FunctionUnderTest, native: None) -> None:
    """``torch.func.grad`` of all inputs; it must equal ``backward``."""
    function, floating = tested.of_floating_inputs(tested.as_scalar_function())
    grads = func.grad(function, tuple(range(len(floating))))(*floating)
    assert_close(grads, tested.baseline[1], tested.gradient_names())


def batched_vjp(tested: FunctionUnderTest, native: None) -> None:
    """Three incoming gradients at once, by vmap over ``func.vjp``, as torch.func.jacrev computes its rows; the result
    must equal three separate backward passes."""
    function, floating = tested.of_floating_inputs(tested)
    outputs, vjp = func.vjp(function, *floating)
    grad_outputs = [random_like(outputs, seed) for seed in range(BATCH)]
    batched = func.vmap(vjp)(tuple(map(torch.stack, zip(*grad_outputs, strict=True))))
    for n, incoming in enumerate(grad_outputs):
        _, expected = run_forward_backward(tested, tested.leaves(), incoming)
        assert_close([rows[n] for rows in batched], expected, tested.gradient_names(), f"row {n} of {BATCH}")


def vmap(tested: FunctionUnderTest, native: None) -> None:
    """``torch.func.vmap`` over every input alone, and over all together; outputs and gradients must equal those of a
    loop."""
    draws = [tested.inputs, *(_other_inputs(tested, seed) for seed in range(1, BATCH))]
    names = list(tested.inputs)
    all_names, scalar_function = set(names), tested.as_scalar_function()
    for batched in [all_names] if len(names) == 1 else [*({name} for name in names), all_names]:
        dims = tuple(0 if name in batched else None for name in names)
        stacks = [torch.stack([d[name] for d in draws]) if name in batched else draws[0][name] for name in names]
        where = "over " + (next(iter(batched)) if len(batched) == 1 else "all inputs")
        try:
            outputs = func.vmap(tested, in_dims=dims)(*stacks)
            argnums = tuple(n for n, tensor in enumerate(stacks) if tensor.is_floating_point())
            gradients = func.vmap(func.grad(scalar_function, argnums), in_dims=dims)(*stacks)
        except Exception as error:
            raise CheckFailed(f"{where}: {error_summary(error)}") from error
        for n in range(BATCH):
            leaves = tested.leaves({name: (draws[n] if name in batched else draws[0])[name] for name in names})
            expected = run_forward_backward(tested, leaves)
            assert_close([o[n] for o in outputs], expected[0], output_names(outputs), where)
            assert_close([g[n] for g in gradients], expected[1], tested.gradient_names(), where)


def _other_inputs(tested: FunctionUnderTest, seed: int) -> dict[str, Tensor]:
    """Draw inputs of the same shapes. Inputs that the case does not draw at random are scaled down, to differ."""
    inputs = tested.draw_inputs(seed)
    for name, first in tested.inputs.items():
        if inputs[name].shape != first.shape or torch.equal(inputs[name], first):
            inputs[name] = first * (1 - seed / 16) if first.is_floating_point() else first
    return inputs


def compiled(tested: FunctionUnderTest, native: None) -> None:
    """``torch.compile(fullgraph=True, backend="aot_eager")``, which traces forward and backward into graphs and needs
    no compiler; outputs and gradients must equal those of the eager run."""
    torch._dynamo.reset()
    try:
        function = torch.compile(tested.function, fullgraph=True, backend=BACKEND)
        tested.assert_equals_baseline(*run_forward_backward(tested.with_function(function), tested.leaves()))
    finally:
        torch._dynamo.reset()


def autocast(
    tested: FunctionUnderTest, native: tuple[list[torch.dtype], float] | None
) -> tuple[list[torch.dtype], float]:
    """float32 inputs under ``torch.autocast``, to bfloat16 on a CPU and to float16 elsewhere: outputs have the dtypes
    of native's, gradients are float32, and the error of their norm is at most 10 % or three times native's own."""
    exact = tested.baseline[1]
    float32_inputs = {n: t.float() if t.is_floating_point() else t for n, t in tested.inputs.items()}
    leaves = tested.leaves(float32_inputs)
    device_type = tested.device.type
    with torch.autocast(device_type, dtype=AUTOCAST_DTYPES.get(device_type, torch.float16)):
        outputs = tested(*leaves)
    dtypes = [output.dtype for output in outputs]
    if native is not None and dtypes != native[0]:
        raise CheckFailed(f"the output is {_dtype_names(dtypes)}, natively {_dtype_names(native[0])}")
    gradients = input_grads(outputs, leaves, random_grad_outputs(outputs))
    if any(gradient.dtype is not torch.float32 for gradient in gradients):
        raise CheckFailed(f"gradients of float32 inputs are {_dtype_names([g.dtype for g in gradients])}")
    norm = float(sum(g.square().sum() for g in exact)) ** 0.5
    difference = float(sum((a.double() - b).square().sum() for a, b in zip(gradients, exact, strict=True))) ** 0.5
    error = difference / norm if norm else difference
    limit = AUTOCAST_RTOL if native is None else max(AUTOCAST_RTOL, 3 * native[1])
    if not error <= limit:
        raise CheckFailed(f"the gradient is off by {100 * error:.3g} % of its norm; the limit is {100 * limit:.3g} %")
    return dtypes, error


def _dtype_names(dtypes: list[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def checkpointed(tested: FunctionUnderTest, native: None) -> None:
    """``torch.utils.checkpoint(use_reentrant=False)``: gradients equal those of the plain run, and only inputs and
    outputs are kept until backward."""
    leaves = tested.leaves()
    outputs = checkpoint(tested, *leaves, use_reentrant=False, preserve_rng_state=False)
    tested.assert_equals_baseline(outputs, input_grads(outputs, leaves, random_grad_outputs(outputs)))
    # Forward again, since a function may save other tensors while operators are watched, as ours does in float32.
    with StorageTracker() as tracker:
        outputs = checkpoint(tested, *leaves, use_reentrant=False, preserve_rng_state=False)
    kept = tracker.live_bytes(exclude=[*leaves, *outputs])
    if kept:
        raise CheckFailed(f"{kept} bytes are kept until backward in spite of the checkpoint")
