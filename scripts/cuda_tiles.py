"""Find the fastest tiles of the network's kernels on this GPU, for batches of the given sizes.

    python -m scripts.cuda_tiles 64 256 4096

A step of ``DocumentCNN`` with its update is measured as a CUDA graph. The search begins with the tiles in
``manualgrad/network/cuda_tiles.py``, gives one attribute after another its other values, and keeps the fastest value
of each, until a pass over all attributes changes nothing. Values take turns with the present one; a ratio is the
median of the rounds. Tiles that give wrong gradients are not measured.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

import manualgrad as mg
from compare.speed.correctness import NEAR_TIE_TOLERANCE, relative_error
from compare.speed.interleaving import interleave, ratios_by_round
from compare.speed.timer import Timer, timer_for
from manualgrad.cuda import launch
from manualgrad.network.cuda_graph import capture, warm_up
from manualgrad.network.cuda_plan import CUDAPlan
from manualgrad.network.cuda_tiles import Tiles, tiles_for

CANDIDATES: Mapping[str, Sequence[Any]] = {
    "image_windows": (8, 16, 32, 64),
    "image_warps": (1, 2, 4),
    "windows": (4, 8, 16, 32),
    "conv_warps": (2, 4),
    "conv_split": (1, 2, 4, 8),
    "dense": ((16, 32, 4), (16, 32, 8), (16, 32, 16), (32, 32, 4), (32, 64, 2), (64, 64, 1), (64, 64, 2)),
    "head": ((16, 16, 128), (16, 32, 128), (16, 64, 128), (16, 0, 32), (16, 0, 128), (32, 0, 32)),
    "columns": ((64, 1), (64, 2), (64, 4), (64, 7)),
    "grad_parts": (32, 64, 112, 224, 448),
    "positions": (16, 32),
    "first_parts": (264, 528, 576, 1056, 2112),
    "first_windows": (16, 32),
    "first_taps": (8, 16, 32),
    "dense_parts": (1, 2, 4, 8, 16),
    "reduce": ((16, 256), (32, 128), (64, 32), (64, 64), (128, 32)),
}
"""Values to try, by attribute of :class:`Tiles`."""

MIN_GAIN = 0.02  # a smaller one is within the noise of a median of ROUNDS ratios
ROUNDS, SECONDS = 9, 0.02  # of each measurement

Measure = Callable[[Sequence[Tiles]], list[float | str]]
"""Seconds of a step over those with the first tiles, or the reason why there are none."""


def find_fastest(first: Tiles, measure: Measure, candidates: Mapping[str, Sequence[Any]] = CANDIDATES) -> Tiles:
    """Change one attribute at a time, as long as it makes the step faster by MIN_GAIN. Print each measurement."""
    best, before = first, None
    while best != before:
        before = best
        for name, values in candidates.items():
            others = [replace(best, **{name: value}) for value in values if value != getattr(best, name)]
            ratios = measure([best, *others])[1:]
            for tiles, ratio in zip(others, ratios, strict=True):
                result = ratio if isinstance(ratio, str) else f"{ratio:.3f}"
                print(f"  {name} = {getattr(tiles, name)}: {result}", flush=True)
            measured = [(r, tiles) for r, tiles in zip(ratios, others, strict=True) if not isinstance(r, str)]
            ratio, tiles = min(measured, key=lambda pair: pair[0], default=(1.0, best))
            if ratio < 1 - MIN_GAIN:
                best = tiles
                print(f"  kept: {name} = {getattr(best, name)}", flush=True)
    return best


@dataclass(frozen=True)
class Batch:
    """A model, images and labels on the device, and the model's gradients in float64 on the CPU."""

    model: mg.DocumentCNN
    x: Tensor
    labels: Tensor
    gradients: list[Tensor]

    @classmethod
    def draw(cls, model: mg.DocumentCNN, image_shape: Sequence[int], size: int, device: str) -> Batch:
        """Random images of shape (C_in, H, W), and labels."""
        x, labels = torch.rand(size, *image_shape), torch.randint(model.classes, (size,))
        exact = copy.deepcopy(model).double()
        loss = exact.cost(x.double(), labels)
        gradients = list(torch.autograd.grad(loss, list(exact.parameters())))
        return cls(model.to(device), x.to(device), labels.to(device), gradients)


class TileTimer:
    """Captured steps on one batch, one for each choice of tiles."""

    def __init__(self, batch: Batch, timer: Timer) -> None:
        self.batch, self.timer = batch, timer
        planned = batch.model.find_plan(batch.x)
        if isinstance(planned, str):
            raise ValueError(planned)
        plan, self._parameters = planned
        self._network = plan.network

    def measure(self, choices: Sequence[Tiles]) -> list[float | str]:
        """:data:`Measure` for these tiles."""
        from triton.errors import TritonError  # too many registers, too much shared memory

        steps: dict[int, Callable[[], float]] = {}
        reasons: dict[int, str] = {}
        for number, tiles in enumerate(choices):
            try:
                steps[number] = self._capture(tiles)
            except (TritonError, ValueError) as error:
                reasons[number] = f"not measured: {' '.join(str(error).split())}"
        if 0 in reasons:
            raise ValueError(f"the present tiles cannot be measured: {reasons[0]}")
        rounds = interleave(steps, ROUNDS)
        return [
            reasons[n] if n in reasons else ratios_by_round(rounds[n], rounds[0]).median for n in range(len(choices))
        ]

    def _capture(self, tiles: Tiles) -> Callable[[], float]:
        """A function that returns the mean seconds of a step.

        Raises:
            ValueError: a gradient is wrong."""
        batch, factor = self.batch, self.batch.x.new_zeros(())
        plan = CUDAPlan(self._network, len(batch.x), tiles)
        parameters = [p.detach().clone() for p in self._parameters]
        step = plan.new_step(batch.x, batch.labels, parameters, factor, update=True)
        warm_up(step.run, batch.x.device)
        graph = capture(step.run, batch.x.device)
        factor.fill_(1)
        graph.replay()
        self._check([grad.cpu() for grad in step.result.steps])
        factor.zero_()  # no update changes the parameters from here on

        def seconds(num_steps: int) -> float:
            marks = [self.timer.mark()]
            for _ in range(num_steps):
                graph.replay()
            return sum(self.timer.seconds([*marks, self.timer.mark()])) / num_steps

        seconds(1)
        num_steps = max(1, round(SECONDS / max(seconds(1), 1e-9)))
        keep = step, plan  # a graph keeps none of its tensors alive
        return lambda: seconds(num_steps) if keep else 0.0

    def _check(self, gradients: Iterable[Tensor]) -> None:
        for number, (ours, exact) in enumerate(zip(gradients, self.batch.gradients, strict=True)):
            error = relative_error(ours, exact)
            if not error <= NEAR_TIE_TOLERANCE:
                raise ValueError(f"gradient {number} is off by {error:.2g} of its norm")


def main(arguments: Sequence[str]) -> int:
    if not arguments or not all(text.isdigit() and int(text) for text in arguments):
        print(__doc__, file=sys.stderr)
        return 2
    reason = launch.why_none() if torch.cuda.is_available() else "PyTorch finds no CUDA device"
    if reason:
        print(f"cuda_tiles: {reason}", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}; seconds over those of the present tiles")
    for size in map(int, arguments):
        print(f"batch {size}:")
        torch.manual_seed(0)
        first = tiles_for(size)
        try:
            timer = TileTimer(Batch.draw(mg.DocumentCNN(), (1, 28, 28), size, "cuda"), timer_for("cuda"))
            best = find_fastest(first, timer.measure)
        except ValueError as error:  # no kernels for this GPU, or the present tiles give wrong gradients
            print(f"cuda_tiles: {error}", file=sys.stderr)
            return 2
        ratio = timer.measure([first, best])[1] if best != first else 1.0
        values = {f.name: getattr(best, f.name) for f in fields(Tiles)}
        changes = {name: value for name, value in values.items() if value != getattr(first, name)}
        print(f"batch {size}: {ratio:.3f} of the present tiles' time with {changes or 'no change'}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
