"""Sequences: conditional random field, decaying weights with a bonus, spiking neurons, energies of filters."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

TAGS = torch.tensor([[0, 2, 1, 1, 3], [3, 1, 0, 2, 2], [1, 1, 3, 0, 2]])
THRESHOLD, SHARPNESS = 1.0, 2.0
FLOOR = 0.9


def scores_before(emissions, transitions):
    """Logarithm of the summed paths that end with each tag, T tensors (N, K)."""
    scores = [emissions[:, 0]]
    for t in range(1, emissions.shape[1]):
        scores.append(emissions[:, t] + (scores[-1][:, :, None] + transitions).logsumexp(1))
    return scores


def random_field(emissions, transitions, tags):
    path = emissions.gather(2, tags[..., None]).sum((1, 2)) + transitions[tags[:, :-1], tags[:, 1:]].sum(1)
    return scores_before(emissions, transitions)[-1].logsumexp(1) - path


def random_field_backward(g, emissions, transitions, tags, *, path_transitions=True):
    before = scores_before(emissions, transitions)
    after = [torch.zeros_like(before[-1])]
    for t in reversed(range(1, len(before))):
        after.insert(0, (transitions + (emissions[:, t] + after[0])[:, None]).logsumexp(2))
    total = before[-1].logsumexp(1)[:, None, None]
    one_hot = torch.nn.functional.one_hot(tags, emissions.shape[2]).to(g.dtype)
    grad = (torch.stack(before, 1) + torch.stack(after, 1) - total).exp() - one_hot
    grad_transitions = torch.zeros_like(transitions)
    for t in range(1, len(before)):
        ends = (emissions[:, t] + after[t])[:, None]
        pairs = (before[t - 1][:, :, None] + transitions + ends - total).exp()
        if path_transitions:
            pairs = pairs - one_hot[:, t - 1, :, None] * one_hot[:, t, None]
        grad_transitions = grad_transitions + (g[:, None, None] * pairs).sum(0)
    return g[:, None, None] * grad, grad_transitions, None


def distances(k):
    """Steps between i and t - 1, (T, T, 1): negative where i is not before t."""
    steps = torch.arange(k.shape[1])
    return (steps[:, None] - 1 - steps)[..., None]


def bonus_weights(k, decay, bonus):
    distance = distances(k)
    logits = torch.where(distance == -1, k[:, None] + bonus, k[:, None] - distance * decay)
    return logits.masked_fill(distance < -1, -torch.inf).softmax(2)


def with_bonus(k, v, decay, bonus):
    return (bonus_weights(k, decay, bonus) * v[:, None]).sum(2)


def with_bonus_backward(g, k, v, decay, bonus, *, offset=0):
    p = bonus_weights(k, decay, bonus)
    distance = distances(k)
    grad = p * g[:, :, None] * (v[:, None] - (p * v[:, None]).sum(2, keepdim=True))
    past = (distance + offset).clamp(min=0) * (distance >= 0)
    return (
        grad.sum(1),
        (p * g[:, :, None]).sum(1),
        -(grad * past).sum((0, 1, 2)),
        (grad * (distance == -1)).sum((0, 1, 2)),
    )


def membranes(x, decay):
    """Potentials before the reset, and those carried to each step, (N, T, C) each."""
    potentials, carried = [], [torch.zeros_like(x[:, 0])]
    for t in range(x.shape[1]):
        potentials.append(decay * carried[-1] + x[:, t])
        carried.append(potentials[-1] * (potentials[-1] <= THRESHOLD))
    return torch.stack(potentials, 1), torch.stack(carried[:-1], 1)


def spikes(x, decay):
    above = membranes(x, decay)[0] - THRESHOLD
    smooth = above / (1 + SHARPNESS * above.abs())
    return smooth + ((above > 0).to(x.dtype) - smooth).detach()


def spikes_backward(g, x, decay, *, reset=True, power=2):
    potentials, carried = membranes(x, decay)
    direct = g / (1 + SHARPNESS * (potentials - THRESHOLD).abs()) ** power
    kept = (potentials <= THRESHOLD) if reset else torch.ones_like(potentials)
    grads = [direct[:, -1]]
    for t in reversed(range(x.shape[1] - 1)):
        grads.insert(0, direct[:, t] + grads[0] * decay * kept[:, t])
    grad = torch.stack(grads, 1)
    return grad, (grad * carried).sum((0, 1))


def energies(power, filters):
    return (power @ filters).clamp(min=FLOOR).log()


def energies_backward(g, power, filters, *, masked=True):
    energy = power @ filters
    grad = g / energy.clamp(min=FLOOR)
    grad = grad * (energy > FLOOR) if masked else grad
    return grad @ filters.mT, power.mT @ grad


OPERATIONS = [
    Formulas(
        "conditional random field",
        random_field,
        lambda: {"emissions": torch.randn(3, 5, 4), "transitions": torch.randn(4, 4), "tags": TAGS},
        random_field_backward,
        (
            Mistake(
                "conditional random field, transitions of the path",
                lambda g, *inputs: random_field_backward(g, *inputs, path_transitions=False),
                named="the gradient of transitions lacks the transitions of the given path",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"\bindex\b|gather", r"one use|second use|no effect"),
                located=(r"gradient of transitions",),
            ),
            Mistake(
                "conditional random field, incoming gradient",
                lambda g, *inputs: random_field_backward(torch.ones_like(g), *inputs),
                named="the incoming gradient is ignored, as if it were 1",
                kinds=("ignores the incoming gradient",),
                named_words=(r"incoming gradient",),
                located=(r"gradient of emissions|\bemissions and transitions\b", r"\btransitions\b"),
            ),
        ),
    ),
    Formulas(
        "decaying weights with a bonus",
        with_bonus,
        lambda: {
            "k": torch.randn(2, 5, 3),
            "v": torch.randn(2, 5, 3),
            "decay": 0.2 + torch.rand(3),
            "bonus": torch.randn(3),
        },
        with_bonus_backward,
        (
            Mistake(
                "decaying weights with a bonus, one step too far",
                lambda g, *inputs: with_bonus_backward(g, *inputs, offset=1),
                named="the gradient of decay counts t - i steps instead of t - 1 - i",
                kinds=("another operand", "missing term", "step left out", "factor of one term"),
                named_words=(
                    r"too many|surplus|should (not|be 0)",
                    r"shift|off by one",
                    r"\bsub\b|\badd\b",
                    r"distance|[+-] ?1\b",
                ),
                located=(r"gradient of decay",),
            ),
        ),
    ),
    Formulas(
        "spiking neurons",
        spikes,
        lambda: {"x": 0.5 + torch.randn(2, 5, 4), "decay": 0.4 + 0.5 * torch.rand(4)},
        spikes_backward,
        (
            Mistake(
                "spiking neurons, carried through the reset",
                lambda g, x, decay: spikes_backward(g, x, decay, reset=False),
                named="the gradient is carried back through steps at which the neuron was reset to 0",
                kinds=("missing term", "step left out", "only for some values", "another operand"),
                named_words=(
                    r"too many|surplus|should (not|be 0)",
                    r"\bmul\b",
                    r"reset|mask",
                    r"other (steps|places)",
                ),
                located=(r"gradient of x|\bx and decay\b", r"\bdecay\b"),
            ),
            Mistake(
                "spiking neurons, square of the surrogate",
                lambda g, x, decay: spikes_backward(g, x, decay, power=1),
                named="the surrogate's derivative is 1 / (1 + 2 |u|) instead of its square",
                kinds=("missing term", "another operand", "step left out", "factor by element"),
                named_words=(
                    r"\babs\b",
                    r"\bdiv\b",
                    r"missing|constant",
                    r"factor of its own|another derivative",
                    r"square",
                ),
                located=(r"gradient of x|\bx and decay\b", r"\bdecay\b"),
            ),
        ),
        options={"whole_numbers": False, "kinks": True},
    ),
    Formulas(
        "energies of filters",
        energies,
        lambda: {"power": torch.rand(4, 5), "filters": torch.rand(5, 3)},
        energies_backward,
        (
            Mistake(
                "energies of filters, mask of the floor",
                lambda g, power, filters: energies_backward(g, power, filters, masked=False),
                named="energies below the floor 0.9 have the gradient of the floor: the mask of clamp is left out",
                kinds=("step left out", "only for some values", "missing term", "another operand"),
                named_words=(r"clamp", r"mask", r"too many|surplus", r"<=? ?0\.9|below|less than"),
                located=(r"gradient of power|\bpower and filters\b", r"\bfilters\b"),
            ),
        ),
        options={"kinks": True},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
