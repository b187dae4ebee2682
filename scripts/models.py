"""A torchvision model with our layers beside its own: gradients, flips, memory and time of one training step.

python scripts/models.py alexnet vgg11_bn resnet18 --size 224 --batch 2 --seeds 5

Random weights, images and labels, training mode, dropout from the same seed. A float64 run of the native model is the
oracle. In float32 a value near 0 may fall on the other side of a ReLU, or another place may win a pooling window, for
native as for ours: a flip. One flip moves a gradient more than all roundings do, so each error is measured twice:
against the oracle, and against an oracle made to decide as the very run did, which leaves rounding.
The exit code is 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import difflib
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler, which counts bytes, says much on its own

import torch
import torchvision
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import manualgrad as mg

sys.path.insert(0, str(Path(__file__).parents[1]))
from scripts.decisions import Decisions, flips, made_to_decide, recorded

FLOAT64_LIMIT = 1e-9  # of the whole gradient's norm, ours from native
FLOAT32_LIMIT = 2.0  # times native's own error against the oracle, median over the seeds
NEXT_TO_NOTHING = 1e-9  # of the whole norm: such a gradient is 0, as a bias's before a batch norm, and all rounding

# ------------------------------------------------------------------------------------------------- one gradient


@dataclass(frozen=True)
class Batch:
    """Images, labels, and the seed from which dropout draws."""

    images: Tensor
    labels: Tensor
    seed: int

    def to(self, dtype: torch.dtype) -> Batch:
        return Batch(self.images.to(dtype), self.labels, self.seed)


def cost(model: nn.Module, loss: nn.Module, batch: Batch) -> Tensor:
    torch.manual_seed(batch.seed)
    output = model(batch.images)
    return loss(output if isinstance(output, Tensor) else output[0], batch.labels)


def gradients(model: nn.Module, loss: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The gradient of every parameter that has one, by name, in order of depth, in float64."""
    model.zero_grad()
    cost(model, loss, batch).backward()
    found = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def norm(tensors: dict[str, Tensor]) -> float:
    return sum(tensor.square().sum().item() for tensor in tensors.values()) ** 0.5


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The norm of the difference of two whole gradients."""
    return norm({name: one[name] - other[name] for name in one})


# ------------------------------------------------------------------------------------------------- one seed


@dataclass(frozen=True)
class Run:
    """One float32 run against the oracle. Errors by parameter are relative to the parameter's own gradient."""

    whole: float  # |g - oracle| / |oracle|
    rounding: float  # the same against the oracle that decides as the run did
    errors: dict[str, float]
    roundings: dict[str, float]
    flips: dict[str, int]


@dataclass(frozen=True)
class Measured:
    """One seed: ours and native in float32, ours from native in float64, and how much each layer had to decide."""

    seed: int
    ours: Run
    native: Run
    float64: float
    share: dict[str, float]  # of each parameter in the norm of the whole gradient
    decisions: dict[str, int]


def pair(name: str, seed: int, functional: bool = False) -> tuple[nn.Module, nn.Module]:
    """Ours, and a native torchvision model with random weights in training mode; they share their parameters."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about how the two inceptions draw their weights
        native = torchvision.models.get_model(name, weights=None).train()
    return mg.from_torch(native, copy_parameters=False, functional=functional), native


def measure(name: str, seed: int, size: int = 224, batch_size: int = 2, functional: bool = False) -> Measured:
    """Both models on one random batch, in float32 and float64."""
    ours, native = pair(name, seed, functional)
    classes = 1000
    batch = Batch(torch.randn(batch_size, 3, size, size), torch.randint(classes, (batch_size,)), seed)
    our_loss, native_loss = mg.nn.SoftmaxCrossEntropyLoss(), nn.CrossEntropyLoss()
    with recorded(ours) as our_decisions:
        our_gradients = gradients(ours, our_loss, batch)
    with recorded(native) as native_decisions:
        native_gradients = gradients(native, native_loss, batch)

    native, batch = native.double(), batch.to(torch.float64)  # from here on, exactly the same weights and images
    ours = mg.from_torch(native, copy_parameters=False, functional=functional)
    with recorded(native) as decisions:
        oracle = gradients(native, native_loss, batch)
    length = norm(oracle)
    float64 = distance(gradients(ours, our_loss, batch), oracle) / length

    def run(found: dict[str, Tensor], decided: Decisions) -> Run:
        flipped, same_way = flips(decided, decisions), oracle
        if any(flipped.values()):
            with made_to_decide(native, decided):
                same_way = gradients(native, native_loss, batch)
        each = {name: norm({name: g}) or 1.0 for name, g in oracle.items()}
        return Run(
            distance(found, oracle) / length,
            distance(found, same_way) / norm(same_way),
            {name: (found[name] - g).norm().item() / each[name] for name, g in oracle.items()},
            {name: (found[name] - g).norm().item() / each[name] for name, g in same_way.items()},
            flipped,
        )

    return Measured(
        seed,
        run(our_gradients, our_decisions),
        run(native_gradients, native_decisions),
        float64,
        {name: norm({name: g}) / length for name, g in oracle.items()},
        {name: sum(each.numel() for each in made) for name, made in decisions.items()},
    )


# ------------------------------------------------------------------------------------------ one training step


@dataclass(frozen=True)
class Step:
    """One float32 training step: medians of seconds, the median of their ratios, the most bytes held at once."""

    ours_seconds: float
    native_seconds: float
    ratio: float
    ours_bytes: int
    native_bytes: int


def training_step(name: str, size: int = 224, batch_size: int = 2, rounds: int = 5, functional: bool = False) -> Step:
    """Ours and native in turn; bytes are those beyond parameters and images."""
    ours, native = pair(name, 0, functional)
    batch = Batch(torch.randn(batch_size, 3, size, size), torch.randint(1000, (batch_size,)), 0)

    def stepper(model: nn.Module, loss: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

        def step() -> None:
            optimizer.zero_grad()
            cost(model, loss, batch).backward()
            optimizer.step()

        return step

    steps = (stepper(ours, mg.nn.SoftmaxCrossEntropyLoss()), stepper(native, nn.CrossEntropyLoss()))
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + 1):
        for step, times in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step()
            if round_:  # the first warms up
                times.append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    ours.zero_grad()  # the gradients, which both share, are part of what a step holds
    held = []
    for step in steps:
        held.append(most_bytes(step))
        ours.zero_grad()
    return Step(*(statistics.median(each) for each in (*seconds, ratios)), *held)


def most_bytes(step: Callable[[], None]) -> int:
    """The most that PyTorch's allocator held at once during ``step``, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    held = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


# ------------------------------------------------------------------------------------------------- the report


def table(results: list[Measured]) -> str:
    """A line for each parameter, in order of depth: medians over the seeds."""
    lines = [f"{'parameter':36} {'share':>8}  {'error ours':>10} {'native':>8}  {'rounding ours':>13} {'native':>8}"]
    for name in results[0].share:
        share = statistics.median(result.share[name] for result in results)
        if share < NEXT_TO_NOTHING:
            lines.append(f"{name:36} {share:8.1e}  0 but for rounding")
            continue
        columns = [
            statistics.median(getattr(getattr(result, who), what)[name] for result in results)
            for what in ("errors", "roundings")
            for who in ("ours", "native")
        ]
        lines.append("{:36} {:8.1e}  {:10.1e} {:8.1e}  {:13.1e} {:8.1e}".format(name, share, *columns))
    lines += ["", f"{'layer that decides':36} {'places':>9} {'flips ours':>11} {'native':>8}   (all seeds together)"]
    for name in results[0].decisions:
        total, ours, native = (
            sum(counts)
            for counts in zip(
                *((r.decisions[name], r.ours.flips[name], r.native.flips[name]) for r in results), strict=True
            )
        )
        lines.append(f"{name:36} {total:9} {ours:11} {native:8}")
    return "\n".join(lines)


def verdict(results: list[Measured]) -> tuple[str, bool]:
    """What the whole gradient says, and whether both limits are kept."""
    lines = []
    for r in results:
        lines.append(
            f"seed {r.seed}: float32 error ours {r.ours.whole:.2e}, native {r.native.whole:.2e}, "
            f"ratio {r.ours.whole / r.native.whole:.2f}; rounding {r.ours.rounding:.2e}, {r.native.rounding:.2e}, "
            f"ratio {r.ours.rounding / r.native.rounding:.2f}; flips {sum(r.ours.flips.values())}, "
            f"{sum(r.native.flips.values())}; float64 ours from native {r.float64:.1e}"
        )
    ratio = statistics.median(r.ours.whole / r.native.whole for r in results)
    rounding = statistics.median(r.ours.rounding / r.native.rounding for r in results)
    float64 = max(r.float64 for r in results)
    lines.append(f"median ratio {ratio:.2f} (at most {FLOAT32_LIMIT:g}), of rounding alone {rounding:.2f}")
    lines.append(f"float64: at most {float64:.1e} of the gradient's norm (at most {FLOAT64_LIMIT:g})")
    return "\n".join(lines), ratio <= FLOAT32_LIMIT and float64 <= FLOAT64_LIMIT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a torchvision classification model, as alexnet")
    parser.add_argument("--size", type=int, default=224, help="rows and columns of an image (default: 224)")
    parser.add_argument("--batch", type=int, default=2, help="images in a batch (default: 2)")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0 (default: 5)")
    parser.add_argument("--rounds", type=int, default=5, help="training steps of each that are timed (default: 5)")
    parser.add_argument("--functional", action="store_true", help="replace functional calls too")
    arguments = parser.parse_args()
    known = torchvision.models.list_models(module=torchvision.models)
    for name in arguments.models:
        if name not in known:
            near = difflib.get_close_matches(name, known) or known[:5]
            parser.error(f"{name!r} is not a classification model of torchvision; there are {', '.join(near)} ...")
    for name in ("size", "batch", "seeds", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    kept = True
    for name in arguments.models:
        shape = {"size": arguments.size, "batch_size": arguments.batch, "functional": arguments.functional}
        print(f"{name}, {arguments.batch} images of {arguments.size}x{arguments.size}", flush=True)
        results = [measure(name, seed, **shape) for seed in range(arguments.seeds)]
        words, good = verdict(results)
        step = training_step(name, rounds=arguments.rounds, **shape)
        print(f"\n{table(results)}\n\n{words}")
        print(
            f"one training step: {step.ours_seconds:.3f} s ours, {step.native_seconds:.3f} s native, median of "
            f"ratios {step.ratio:.2f}; {step.ours_bytes / 2**20:.0f} MiB ours, {step.native_bytes / 2**20:.0f} MiB "
            f"native, on {torch.get_num_threads()} threads\n",
            flush=True,
        )
        kept = kept and good
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
