"""The case, and its native function in float64 on the values of a variant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from compare.case import Case
from compare.gradients.diagnosis.mismatch import RerunNative
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.variants import Variant


@dataclass(frozen=True)
class NativeOracle:
    """The case, and a way to rerun native in float64 on a variant's values with other incoming gradients."""

    case: Case
    rerunner: Callable[[Variant], RerunNative]
    seed: int
    right_inputs: tuple[str, ...] = ()
    is_output_wrong: bool = False
    probes: dict[Variant, Probe] = field(default_factory=dict)

    @property
    def function(self) -> Callable[..., Any] | None:
        """The native function; None if there is none."""
        return self.case.native

    def probe(self, variant: Variant) -> Probe:
        """Return a way to ask ours and native again, on other draws of a variant."""
        variant = replace(variant, data="whole numbers" if variant.data == "whole numbers" else "drawn")
        if variant not in self.probes:
            self.probes[variant] = Probe(
                self.case, variant, self.seed, self.rerunner(variant), self.right_inputs, self.is_output_wrong
            )
        return self.probes[variant]
