"""Functions that rewritten functions call: lookups of replacements, and calls one on the result of the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from manualgrad.interop.native_calls import replacement_of, replacement_of_layer, replacement_of_method
from manualgrad.network import call_chains
from manualgrad.network.call_chains import Call

# Names of functions in the source of rewritten ones.
REPLACEMENT_OF, REPLACEMENT_OF_METHOD, REPLACEMENT_OF_LAYER = (
    "_manualgrad_replacement_of", "_manualgrad_method", "_manualgrad_layer",
)  # fmt: skip
LINKS, LINKS_AS_ONE = "_manualgrad_links", "_manualgrad_links_as_one"


def _relu_method(x: Any) -> Any:
    return replacement_of_method(x, "relu")()


def _relu_method_in_place(x: Any) -> Any:
    return replacement_of_method(x, "relu_")()


_METHODS = {"relu": _relu_method, "relu_": _relu_method_in_place}
call_chains.register_relu(_relu_method, lambda: False)
call_chains.register_relu(_relu_method_in_place, lambda: True)


def run_links(links: Sequence[Any], x: Any) -> Any:
    """The result of the links on ``x``, the last one first.

    A link is a callable, (callable, arguments behind the input, options), or the name of a method of a tensor."""
    return call_chains.run_calls(_calls(links), x)


def run_links_as_one(links: Sequence[Any], x: Any) -> Any | None:
    """The same, or None if they are not computed together."""
    return call_chains.run_as_one(_calls(links), x)


def _calls(links: Sequence[Any]) -> list[Call]:
    return [
        Call(*link) if type(link) is tuple else Call(_METHODS[link] if type(link) is str else link)
        for link in reversed(links)
    ]


RUNTIME: dict[str, Callable[..., Any]] = {
    REPLACEMENT_OF: replacement_of,
    REPLACEMENT_OF_METHOD: replacement_of_method,
    REPLACEMENT_OF_LAYER: replacement_of_layer,
    LINKS: run_links,
    LINKS_AS_ONE: run_links_as_one,
}
