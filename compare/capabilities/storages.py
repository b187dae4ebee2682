"""Which memory is still held: of all that was made in a stretch of code, what has not been given back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors_in(arguments: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]


class Storages(TorchDispatchMode):
    """Notes every storage that an operator makes, and keeps none of them alive.

    It sees what hangs on a Function's ctx as well as what went through ``save_for_backward``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.noted: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in tensors_in((args, kwargs))}
        result = operator(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            reference = StorageWeakRef(tensor.untyped_storage())
            if reference.cdata not in given:  # a view of what was there before is not made here
                self.noted.setdefault(reference.cdata, (reference, tensor.untyped_storage().nbytes()))
        return result

    def alive(self, but: Iterable[Tensor] = ()) -> int:
        """Bytes that are still held, without those of ``but``."""
        left_out = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in but}
        return sum(n for key, (reference, n) in self.noted.items() if key not in left_out and not reference.expired())
