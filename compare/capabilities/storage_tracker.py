"""Storages that a stretch of code allocates, and how many bytes of them are still alive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors_in(arguments: Any) -> list[Tensor]:
    """Collect all tensors in nested tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]


class StorageTracker(TorchDispatchMode):
    """Records every storage that an operator allocates, by weak reference.

    It covers tensors that are attributes of a Function's ctx as well as those saved by ``save_for_backward``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.allocated: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in tensors_in((args, kwargs))}
        result = operator(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            reference = StorageWeakRef(tensor.untyped_storage())
            if reference.cdata not in arguments:  # a view of an argument allocates nothing
                self.allocated.setdefault(reference.cdata, (reference, tensor.untyped_storage().nbytes()))
        return result

    def live_bytes(self, exclude: Iterable[Tensor] = ()) -> int:
        """Bytes of the recorded storages that are still alive, without those of ``exclude``."""
        excluded = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in exclude}
        return sum(
            nbytes
            for key, (reference, nbytes) in self.allocated.items()
            if key not in excluded and not reference.expired()
        )
