"""Effects of edits on the wrong numbers, by which two edits are told together without a run of each two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor

from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.numbers import as_real
from compare.gradients.run_variant import RunResult
from compare.gradients.source_changes.candidate import Candidate
from compare.gradients.source_changes.edits import Edit

MAX_NUMBERS = 4_000_000  # that are kept
MAX_PAIRS = 12
MAX_ALIKE = 6  # edits with the same effect that are kept
CHUNK = 256
RELATIVE_ERROR = 1e-5
MIN_SHARE = 0.2  # of the wrong elements that an edit of a part makes right
MIN_ELEMENTS = 3


class Effects:
    """The wrong quantities as one vector, with each edit that a run was made of.

    Args:
        targets: the mismatches of one variant.
    """

    def __init__(self, targets: Sequence[Mismatch]) -> None:
        self._targets = [t for t in targets if t.oracle is not None and t.wrong is not None and t.ours is not None]
        self.is_known = len(self._targets) == len(targets) and all(
            t.ours is not None and t.oracle is not None and t.ours.shape == t.oracle.shape for t in self._targets
        )
        wrong = {target.quantity for target in targets}
        outputs = {name: v for name, v in targets[0].run.values.items() if name.startswith("output")}
        self._outputs = {name: value for name, value in outputs.items() if name not in wrong}  # those must stay
        self._kept: dict[tuple[float, ...], list[Candidate]] = {}
        self._vectors: list[Tensor] = []
        if not self.is_known:
            return
        self._before = _joined([t.ours for t in self._targets])
        self._expected = _joined([t.oracle for t in self._targets])
        self._wrong = torch.cat([t.wrong.flatten().cpu() for t in self._targets if t.wrong is not None])
        tolerances = [torch.full((t.wrong.numel(),), 2 * t.tolerance) for t in self._targets if t.wrong is not None]
        self._limit = torch.cat(tolerances).double()
        self._limit = self._limit.maximum(RELATIVE_ERROR * (self._before - self._expected).abs())
        self.is_known = bool(self._before.isfinite().all() and self._expected.isfinite().all())
        generator = torch.Generator().manual_seed(0)
        self._weights = torch.rand(len(self._before), 2, generator=generator, dtype=torch.float64) + 0.5

    def add(self, candidate: Candidate, result: RunResult) -> None:
        """Keep the numbers of a run; of edits that give the same ones, a few."""
        if not self.is_known or result.error is not None or len(self._vectors) * len(self._before) > MAX_NUMBERS:
            return
        if any(not _is_as_before(value, result.values.get(name)) for name, value in self._outputs.items()):
            return
        values = [result.values.get(target.quantity) for target in self._targets]
        if any(value is None for value in values):
            return
        vector = _joined(values)
        if vector.shape != self._before.shape or not vector.isfinite().all():
            return
        key = tuple(f"{number:.9g}" for number in (vector @ self._weights).tolist())
        if key not in self._kept:
            self._vectors.append(vector)
        alike = self._kept.setdefault(key, [])
        if len(alike) < MAX_ALIKE:
            alike.append(candidate)

    def pairs(self) -> list[tuple[Candidate, Candidate]]:
        """Two edits whose changes of the numbers add up, or multiply, to what is wrong; the nearest first."""
        if len(self._vectors) < 2:
            return []
        alike, vectors = list(self._kept.values()), torch.stack(self._vectors)
        numbers = {(min(p), max(p)) for p in (*self._sums(vectors), *self._products(vectors))}
        pairs = []
        for n, m in numbers:
            apart = [(a, b) for a in alike[n] for b in alike[m] if not _overlap(a, b)]
            pairs += sorted(apart, key=_cost)[:2]
        return sorted(pairs, key=_cost)[:MAX_PAIRS]

    def parts(self) -> list[tuple[Candidate, str]]:
        """Two edits of which each makes a part of the wrong elements right, and both together all; or none.

        The elements that were right stay right with each. The parts are told in words.
        """
        if not self._vectors:
            return []
        candidates, vectors = [alike[0] for alike in self._kept.values()], torch.stack(self._vectors)
        right = (vectors - self._expected).abs() <= self._limit
        counts = (right & self._wrong & (self._expected.abs() > self._limit)).sum(1)
        is_enough = (counts >= max(MIN_ELEMENTS, MIN_SHARE * int(self._wrong.sum()))) & (right | self._wrong).all(1)
        places = is_enough.nonzero().flatten().tolist()
        pairs = [
            (candidates[n].cost + candidates[m].cost, n, m)
            for n, m in combinations(places, 2)
            if (right[n] | right[m])[self._wrong].all()
        ]
        return [(candidates[n], self._words(right[n] & self._wrong)) for n in min(pairs)[1:]] if pairs else []

    def _words(self, chosen: Tensor) -> str:
        """Number of the chosen elements, and what they have in common if that is one index of one gradient."""
        words = f"{int(chosen.sum())} of the {int(self._wrong.sum())} wrong elements"
        sizes = [target.wrong.numel() for target in self._targets if target.wrong is not None]
        chosen_of = [
            (target, mask)
            for target, mask in zip(self._targets, chosen.split(sizes), strict=True)
            if mask.any() and target.wrong is not None
        ]
        if len(chosen_of) != 1:
            return words
        mask, wrong = chosen_of[0][1], chosen_of[0][0].wrong
        assert wrong is not None
        indices, all_wrong = mask.view(wrong.shape).nonzero(), wrong.cpu().nonzero()
        for dim in range(wrong.dim()):
            value = int(indices[0, dim])
            if (indices[:, dim] == value).all() and int((all_wrong[:, dim] == value).sum()) == len(indices):
                index = ", ".join(str(value) if d == dim else ":" for d in range(wrong.dim()))
                return f"the {len(indices)} at [{index}]"
        return f"{words}, such as that at {indices[0].tolist()},"

    def _sums(self, vectors: Tensor) -> Iterator[tuple[int, int]]:
        changes, needed = vectors - self._before, self._expected - self._before
        for n, m in _adding_up(changes @ self._weights, needed @ self._weights):
            if ((changes[n] + changes[m] - needed).abs() <= self._limit).all():
                yield n, m

    def _products(self, vectors: Tensor) -> Iterator[tuple[int, int]]:
        counted = self._before != 0
        if (self._expected[~counted] != 0).any() or (self._expected[counted] == 0).any():
            return
        ratios = vectors[:, counted] / self._before[counted]
        needed = self._expected[counted] / self._before[counted]
        constant = (ratios - ratios[:, :1]).abs().amax(1) <= RELATIVE_ERROR * ratios.abs().amax(1)
        numbers = (ratios != 0).all(1).nonzero().flatten()
        logarithms, weights = ratios[numbers].abs().log(), self._weights[counted]
        for n, m in _adding_up(logarithms @ weights, needed.abs().log() @ weights):
            first, second = int(numbers[n]), int(numbers[m])
            if constant[first] and constant[second]:  # two numbers have any product
                continue
            error = (ratios[first] * ratios[second] - needed) * self._before[counted]
            if (error.abs() <= self._limit[counted]).all():
                yield first, second


def _is_as_before(value: Tensor | None, now: Tensor | None) -> bool:
    if value is None or now is None or value.shape != now.shape or value.dtype != now.dtype:
        return value is now
    if not (value.is_floating_point() or value.is_complex()):
        return torch.equal(now, value)
    return torch.allclose(now, value, rtol=RELATIVE_ERROR, atol=0.0, equal_nan=True)


def _cost(pair: tuple[Candidate, Candidate]) -> int:
    return pair[0].cost + pair[1].cost


def _overlap(first: Candidate, second: Candidate) -> bool:
    """True if an edit of one replaces what holds the place of an edit of the other."""
    edits = [[edit for _, edit in candidate.parts] for candidate in (first, second)]
    return any(_replaces(a, b) or _replaces(b, a) for a in edits[0] for b in edits[1])


def _replaces(outer: Edit, inner: Edit) -> bool:
    held = [node for _, node, _ in inner.changes]
    return any(old is node for _, old, _ in outer.changes for node in (*inner.ancestors, *held))


def _joined(values: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([as_real(value).double().cpu().flatten() for value in values if value is not None])


def _adding_up(numbers: Tensor, needed: Tensor) -> Iterator[tuple[int, int]]:
    """Pairs n < m with ``numbers[n] + numbers[m]`` about equal to ``needed``."""
    limit = 1e-4 * (numbers.abs().sum(1) + needed.abs().sum())
    for start in range(0, len(numbers), CHUNK):
        part = numbers[start : start + CHUNK]
        error = (part[:, None] + numbers[None] - needed).abs().sum(-1)
        for n, m in (error <= limit[None]).nonzero().tolist():
            if start + n < m:
                yield start + n, m
