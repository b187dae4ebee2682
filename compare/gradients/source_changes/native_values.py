"""Values that native computes on the way: the results of its operations, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis.mismatch import Incoming
from compare.gradients.diagnosis.native_calls import Call, InterceptCalls, call_native
from compare.gradients.numbers import has_gradient

MAX_VALUES = 60


def native_values(
    native: Callable[..., Any], inputs: Mapping[str, Tensor], incoming: Incoming
) -> dict[str, list[Tensor]]:
    """Results of the operations that native calls, and their gradients, by words such as
    "the gradient of the result of exp in line 7"; those of the steps of a loop in order.

    Empty if native raises only when it is watched.
    """
    leaves = {
        name: value.clone().requires_grad_() if has_gradient(value) else value for name, value in inputs.items()
    }
    mode = InterceptCalls()
    try:
        with mode, torch.enable_grad():
            result = call_native(native, leaves.values())
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        numbered = [(n, o) for n, o in enumerate(outputs) if isinstance(o, Tensor) and o.requires_grad]
        calls = [call for call in (*mode.composites, *mode.calls) if call.attached is not None]
        attached = [call.attached for call in calls if call.attached is not None and call.attached.requires_grad]
        received = torch.autograd.grad(
            [o for _, o in numbered], attached, [incoming(n, o.detach()) for n, o in numbered], allow_unused=True
        )
    except Exception:  # native raises only when it is watched: then its values explain nothing
        return {}
    gradients = dict(zip(map(id, attached), received, strict=True))
    by_site: dict[Any, list[Call]] = {}
    for call in calls:
        by_site.setdefault(call.site, []).append(call)
    values: dict[str, list[Tensor]] = {}
    for same in by_site.values():
        words = same[0].name
        if words in values:  # another call in the same line
            words += f" (call {1 + sum(name.startswith(same[0].name) for name in values)} there)"
        received_there = [gradients.get(id(call.attached)) for call in same]
        values[words] = [call.result for call in same]
        if any(gradient is not None for gradient in received_there):
            values[f"the gradient of {words}"] = [
                gradient.detach() for gradient in received_there if gradient is not None
            ]
    return dict(list(values.items())[:MAX_VALUES])
