"""Findings where no two tensors can be compared: no gradient, another shape or dtype, an exception."""

from __future__ import annotations

import torch

from compare.case_errors import find_location
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import NO_GRADIENT, WRONG_DTYPE, Mismatch
from compare.gradients.diagnosis.native_oracle import NativeOracle
from compare.gradients.run_variant import OUTPUT, make_leaf


def _number_of_outputs(mismatch: Mismatch, native: NativeOracle) -> str:
    """Statement of how many outputs native has, and ours."""
    expected = native.rerunner(mismatch.variant)(mismatch.incoming(native.seed))
    counts = [sum(name.startswith(OUTPUT) for name in values) for values in (expected, mismatch.run.values)]
    return f"native has {counts[0]} output{'' if counts[0] == 1 else 's'}, ours {counts[1]}"


def _reason_of_no_gradient(mismatch: Mismatch, native: NativeOracle) -> str:
    """Words on outputs that do not require a gradient; "" if they do, so that backward returned None."""
    leaves = [make_leaf(value, mismatch.variant) for value in mismatch.inputs.values()]
    result = native.case.ours(*leaves)  # it did not raise in this variant
    outputs = [o for o in (result if isinstance(result, (tuple, list)) else (result,)) if isinstance(o, torch.Tensor)]
    if any(output.requires_grad for output in outputs):
        return "backward returns None for it, or the output does not depend on it"
    if isinstance(result, list):
        return "the function returns a list, and no output in it requires a gradient: forward must return a tuple"
    return "the output does not require a gradient: it is detached, or made without autograd"


def finding_without_numbers(mismatch: Mismatch, native: NativeOracle) -> Finding:
    """Finding for a missing gradient, another shape or dtype, or an exception."""
    quantity, message = mismatch.quantity, mismatch.message
    if message == NO_GRADIENT:
        return Finding("none", quantity, message, _reason_of_no_gradient(mismatch, native))
    if mismatch.is_output and mismatch.run.error is None and (mismatch.ours is None or mismatch.oracle is None):
        return Finding("wrong output", quantity, _number_of_outputs(mismatch, native), message)
    if mismatch.ours is not None and mismatch.oracle is not None and mismatch.ours.shape != mismatch.oracle.shape:
        ours, oracle = mismatch.ours.double().cpu(), mismatch.oracle.double().cpu()
        evidence = f"got shape {tuple(ours.shape)}, expected {tuple(oracle.shape)}"
        kind, statement = "wrong shape", f"has shape {tuple(ours.shape)}; expected {tuple(oracle.shape)}"
        close = lambda a, b: a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-12)  # noqa: E731
        if ours.squeeze().shape == oracle.squeeze().shape:  # they differ in dimensions of length 1
            evidence = "the numbers are right" if close(ours.reshape(oracle.shape), oracle) else ""
        elif not mismatch.is_output:
            unsummed = [d for d in range(ours.dim()) if close(ours.sum(d), oracle)]
            if oracle.dim() and any(close(ours, reduced) for reduced in (oracle.sum(0), oracle.mean(0))):
                kind, statement = "summed over the batch", "is summed or averaged over dimension 0"
            elif unsummed:
                kind, statement = "not summed over the batch", f"is not summed over dimension {unsummed[0]}"
                statement += f": its shape is {tuple(ours.shape)} instead of {tuple(oracle.shape)}"
            elif oracle.dim() > 1 and close(ours, oracle.mT):
                kind, statement = "transposed", "is transposed"
        return Finding(kind, quantity, statement, evidence)
    if message.startswith(WRONG_DTYPE):
        return Finding("wrong output", quantity, message)
    if mismatch.run.error is None:
        return Finding("raises", quantity, message)
    location = find_location(mismatch.run.error)
    evidence = f"{message} ({location})" if location else message
    return Finding("raises", quantity, "an exception is raised", evidence)
