"""What PyTorch does to functions: torch.func, vmap, compile, autocast, checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, func
from torch.utils.checkpoint import checkpoint

from compare.capabilities.agreement import Fails, first_line, must_agree
from compare.capabilities.storages import Storages
from compare.capabilities.trial import Trial, output_names, pull, random_like, there_and_back, upstream

BATCH = 3
BACKEND = "aot_eager"
HALF = {"cpu": torch.bfloat16}  # elsewhere float16
# bfloat16 has 8 bits, and a ReLU or maximum may fall the other way: the norm of all gradients is judged.
HALF_ERROR = 0.1


def func_grad(trial: Trial, native: None) -> None:
    """``torch.func.grad`` of all inputs; must equal ``backward``."""
    function, floating = trial.of_floating(trial.scalar())
    must_agree(func.grad(function, tuple(range(len(floating))))(*floating), trial.plain[1], trial.gradient_names())


def jacobian_rows(trial: Trial, native: None) -> None:
    """Three incoming gradients at once, by vmap over ``func.vjp``, as torch.func.jacrev makes its rows; must equal
    three backwards."""
    function, floating = trial.of_floating(trial)
    outputs, back = func.vjp(function, *floating)
    incoming = [random_like(outputs, seed) for seed in range(BATCH)]
    together = func.vmap(back)(tuple(map(torch.stack, zip(*incoming, strict=True))))
    for n, one in enumerate(incoming):
        _, expected = there_and_back(trial, trial.leaves(), one)
        must_agree([rows[n] for rows in together], expected, trial.gradient_names(), f"row {n} of {BATCH}")


def vmap(trial: Trial, native: None) -> None:
    """``torch.func.vmap`` over every input alone, and over all together; outputs and gradients must equal a
    loop's."""
    draws = [trial.inputs, *(_another(trial, n) for n in range(1, BATCH))]
    names = list(trial.inputs)
    everything, scalar = set(names), trial.scalar()
    for batched in [everything] if len(names) == 1 else [*({name} for name in names), everything]:
        dims = tuple(0 if name in batched else None for name in names)
        stacks = [torch.stack([d[name] for d in draws]) if name in batched else draws[0][name] for name in names]
        where = "over " + (next(iter(batched)) if len(batched) == 1 else "all inputs")
        try:
            outputs = func.vmap(trial, in_dims=dims)(*stacks)
            places = tuple(n for n, tensor in enumerate(stacks) if tensor.is_floating_point())
            gradients = func.vmap(func.grad(scalar, places), in_dims=dims)(*stacks)
        except Exception as error:
            raise Fails(f"{where}: {first_line(error)}") from error
        for n in range(BATCH):
            leaves = trial.leaves({name: (draws[n] if name in batched else draws[0])[name] for name in names})
            expected = there_and_back(trial, leaves)
            must_agree([o[n] for o in outputs], expected[0], output_names(outputs), where)
            must_agree([g[n] for g in gradients], expected[1], trial.gradient_names(), where)


def _another(trial: Trial, seed: int) -> dict[str, Tensor]:
    """Another draw of the same shapes. What the case draws alike is made a little smaller, so that it differs."""
    other = trial.draw(seed)
    for name, first in trial.inputs.items():
        if other[name].shape != first.shape or torch.equal(other[name], first):
            other[name] = first * (1 - seed / 16) if first.is_floating_point() else first
    return other


def compiled(trial: Trial, native: None) -> None:
    """``torch.compile(fullgraph=True, backend="aot_eager")``, which traces forward and backward into graphs and
    needs no compiler; outputs and gradients must equal those of the plain run."""
    torch._dynamo.reset()
    try:
        function = torch.compile(trial.function, fullgraph=True, backend=BACKEND)
        trial.must_equal_plain(*there_and_back(Trial(trial.case, function, trial.device), trial.leaves()))
    finally:
        torch._dynamo.reset()


def autocast(trial: Trial, native: tuple[list[torch.dtype], float] | None) -> tuple[list[torch.dtype], float]:
    """float32 inputs under ``torch.autocast`` to bfloat16 on a CPU, float16 elsewhere: outputs have the dtypes that
    native's have, gradients arrive in float32, and their norm is right to 10 %, or to three times native's own
    error."""
    exact = trial.plain[1]
    single = {n: t.float() if t.is_floating_point() else t for n, t in trial.inputs.items()}
    leaves = trial.leaves(single)
    with torch.autocast(trial.device.type, dtype=HALF.get(trial.device.type, torch.float16)):
        outputs = trial(*leaves)
    dtypes = [output.dtype for output in outputs]
    if native is not None and dtypes != native[0]:
        raise Fails(f"the output is {_words(dtypes)}, natively {_words(native[0])}")
    gradients = pull(outputs, leaves, upstream(outputs))
    if any(gradient.dtype is not torch.float32 for gradient in gradients):
        raise Fails(f"gradients of float32 inputs are {_words([g.dtype for g in gradients])}")
    length = float(sum(g.square().sum() for g in exact)) ** 0.5
    apart = float(sum((a.double() - b).square().sum() for a, b in zip(gradients, exact, strict=True))) ** 0.5
    error = apart / length if length else apart
    limit = HALF_ERROR if native is None else max(HALF_ERROR, 3 * native[1])
    if not error <= limit:
        raise Fails(f"the gradient is off by {100 * error:.3g} % of its norm, where {100 * limit:.3g} % are granted")
    return dtypes, error


def _words(dtypes: list[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def checkpointed(trial: Trial, native: None) -> None:
    """``torch.utils.checkpoint(use_reentrant=False)``: gradients of the plain run, and until backward nothing is
    kept but inputs and outputs."""
    leaves = trial.leaves()
    with Storages() as made:
        outputs = checkpoint(trial, *leaves, use_reentrant=False, preserve_rng_state=False)
    kept = made.alive(but=[*leaves, *outputs])
    found = pull(outputs, leaves, upstream(outputs))
    trial.must_equal_plain(outputs, found)
    if kept:
        raise Fails(f"{kept} bytes are kept until backward in spite of the checkpoint")
