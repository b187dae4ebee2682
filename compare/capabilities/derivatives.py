"""Derivatives beyond the plain gradient: twice, forwards, forwards over backwards, and by finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, func
from torch.autograd import forward_ad

from compare.capabilities.agreement import Fails, must_agree
from compare.capabilities.trial import Trial, output_names, pull, random_like, upstream

# Central differences in float64: their own error is about 1e-10 of a smooth function. Where a kink lies between the
# two points they are far off, so smaller steps are tried as well, and one that agrees is enough.
STEPS = (1e-5, 1e-6, 1e-7)
CENTRAL = 1e-5
SLOW_ELEMENTS = 24  # of each input and output in gradcheck's slow mode, which runs forward twice for every one


def double_backward(trial: Trial, native: list[Tensor] | None) -> list[Tensor]:
    """The gradients' own gradients, by backward through backward, of a random sum of all gradients, with respect to
    inputs and incoming gradients; ours must equal native's, and native's must equal central differences."""
    second = _second_derivatives(trial)
    if native is not None:
        names = [*trial.gradient_names(), *(f"gradient of incoming gradient {n}" for n in range(len(trial.plain[0])))]
        must_agree(second, native, [f"second derivative, {name}" for name in names])
        return second
    function, floating = trial.of_floating(trial)
    point = [*floating, *upstream(trial.plain[0])]
    along = random_like(point, seed=3)

    def sum_of_gradients(*point: Tensor) -> list[Tensor]:
        leaves = [p.detach().requires_grad_() for p in point[: len(floating)]]
        first = pull(function(*leaves), leaves, point[len(floating) :])
        return [dot(first, random_like(first, seed=2))]

    must_equal_differences([dot(second, along)], sum_of_gradients, point, along, ["second derivative along a line"])
    return second


def _second_derivatives(trial: Trial) -> list[Tensor]:
    leaves = trial.leaves()
    outputs = trial(*leaves)
    incoming = [g.requires_grad_() for g in upstream(outputs)]
    first = pull(outputs, leaves, incoming, create_graph=True)
    if not any(gradient.requires_grad for gradient in first):
        raise Fails("the gradient is cut off from the graph: it depends on nothing")
    # Not autograd.grad, which takes an error that waits in the graph for an input that is not used.
    dot(first, random_like(first, seed=2)).backward()
    asking = [*(leaf for leaf in leaves if leaf.requires_grad), *incoming]
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in asking]


def forward_mode(trial: Trial, native: None) -> None:
    """Jacobian times a random vector in forward mode, for every input alone and for all together; its product with
    the incoming gradient must be that of the vector with the plain gradient."""
    outputs, gradients = trial.plain
    incoming = upstream(outputs)
    function, floating = trial.of_floating(trial)
    tangents = random_like(floating, seed=2)
    everything = list(range(len(floating)))
    for chosen in [everything] if len(everything) == 1 else [*([n] for n in everything), everything]:
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(x, t) if n in chosen else x
                for n, (x, t) in enumerate(zip(floating, tangents, strict=True))
            ]
            pairs = [forward_ad.unpack_dual(output) for output in function(*duals)]
        where = f"for {trial.floating[chosen[0]]} alone: " if len(chosen) < len(everything) else ""
        must_agree([p.primal for p in pairs], outputs, [where + name for name in output_names(outputs)])
        terms = [p.tangent * u for p, u in zip(pairs, incoming, strict=True) if p.tangent is not None]
        forward = sum((term.sum() for term in terms), torch.zeros_like(incoming[0].sum()))
        backward = dot([gradients[n] for n in chosen], [tangents[n] for n in chosen])
        scale = float(sum((gradients[n] * tangents[n]).abs().sum() for n in chosen))
        if not abs(float(forward - backward)) <= 1e-10 * scale + 1e-13:
            raise Fails(f"{where}forward mode gives {float(forward):.6g}, backward {float(backward):.6g}")


def forward_over_reverse(trial: Trial, native: list[Tensor] | None) -> list[Tensor]:
    """A Hessian times a random vector, as torch.func.hessian makes its columns: ``func.jvp`` of ``func.grad`` of
    half the sum of squares; ours must equal native's, and native's central differences."""
    function, floating = trial.of_floating(lambda *tensors: sum(o.square().sum() for o in trial(*tensors)) / 2)
    gradient = func.grad(function, tuple(range(len(floating))))
    along = random_like(floating, seed=2)
    product = list(func.jvp(gradient, tuple(floating), tuple(along))[1])
    names = [f"Hessian times a vector, {name}" for name in trial.gradient_names()]
    if native is not None:
        must_agree(product, native, names)
    else:
        must_equal_differences(product, lambda *point: list(gradient(*point)), floating, along, names)
    return product


def gradcheck_fast(trial: Trial, native: None) -> None:
    """``torch.autograd.gradcheck(fast_mode=True)`` on all inputs in float64."""
    function, floating = trial.of_floating(trial)
    _gradcheck(function, floating, fast=True)


def gradcheck_slow(trial: Trial, native: None) -> None:
    """``torch.autograd.gradcheck`` element by element, on up to 24 elements of every input and output, picked at
    random."""
    function, floating = trial.of_floating(trial)
    generator = torch.Generator().manual_seed(4)

    def picked(tensor: Tensor) -> Tensor:
        return torch.randperm(tensor.numel(), generator=generator)[:SLOW_ELEMENTS].to(tensor.device)

    places = [picked(tensor) for tensor in floating]
    results = [picked(output) for output in trial.plain[0]]

    def of_few(*few: Tensor) -> tuple[Tensor, ...]:
        whole = [
            tensor.flatten().index_put((place,), values).view(tensor.shape)
            for tensor, place, values in zip(floating, places, few, strict=True)
        ]
        return tuple(output.flatten()[place] for output, place in zip(function(*whole), results, strict=True))

    _gradcheck(of_few, [tensor.flatten()[place] for tensor, place in zip(floating, places, strict=True)], fast=False)


def _gradcheck(function: Callable[..., tuple[Tensor, ...]], floating: Sequence[Tensor], fast: bool) -> None:
    leaves = tuple(tensor.detach().requires_grad_() for tensor in floating)
    # Undefined gradients have a row of their own; sums by atomic additions on a GPU come in any order.
    torch.autograd.gradcheck(function, leaves, fast_mode=fast, check_undefined_grad=False, nondet_tol=1e-10)


def must_equal_differences(
    derivative: Sequence[Tensor],
    function: Callable[..., list[Tensor]],
    point: Sequence[Tensor],
    along: Sequence[Tensor],
    names: Sequence[str],
) -> None:
    """That ``derivative`` is how ``function`` changes from ``point`` along a line; at a kink it is not, for anybody.

    Raises:
        Fails: no step of :data:`STEPS` agrees with it; the message is of the best.
    """
    best, message = float("inf"), ""
    for step in STEPS:
        ahead, behind = (
            function(*(p + sign * step * a for p, a in zip(point, along, strict=True))) for sign in (1, -1)
        )
        errors = []
        for name, exact, a, b in zip(names, derivative, ahead, behind, strict=True):
            difference = (a - b) / (2 * step)
            scale = float(exact.norm()) + 1e-10 * float(a.norm()) / step  # what rounding of a alone does
            error = float((exact - difference).norm())
            errors.append((error / scale if scale else error, name, float(exact.norm()), float(difference.norm())))
        worst = max(errors)
        if worst[0] < best:
            best, message = worst[0], f"{worst[1]} has the norm {worst[2]:.6g}, by central differences {worst[3]:.6g}"
    if not best <= CENTRAL:
        raise Fails(message)


def dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Σ a b over all elements of all pairs."""
    return sum((a * b).sum() for a, b in zip(first, second, strict=True))
