"""Losses: preferences, angular margins, Poisson, expectiles, a bound on deviations, codebooks, balance of experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

BETA, MARGIN, SCALE, LEVEL, COMMITMENT = 0.3, 0.5, 4.0, 0.8, 0.25
LABELS = torch.tensor([2, 0, 5, 3])


def preferences(chosen, rejected):
    return -F.logsigmoid(BETA * (chosen - rejected)).mean()


def preferences_backward(g, chosen, rejected, *, beta=BETA, sign=-1):
    grad = -g * beta * torch.sigmoid(-BETA * (chosen - rejected)) / len(chosen)
    return grad, sign * grad


def with_margin(cosines, labels):
    """Logits of which the label's angle is larger by the margin."""
    hot = F.one_hot(labels, cosines.shape[1]).to(cosines.dtype)
    return SCALE * torch.where(hot > 0, (cosines.acos() + MARGIN).cos(), cosines)


def angular_margin(cosines, labels):
    return F.cross_entropy(with_margin(cosines, labels), labels, reduction="sum")


def angular_margin_backward(g, cosines, labels, *, angle=True, scale=SCALE):
    hot = F.one_hot(labels, cosines.shape[1]).to(cosines.dtype)
    grad = g * scale * (with_margin(cosines, labels).softmax(1) - hot)
    slope = (cosines.acos() + MARGIN).sin() / (1 - cosines**2).sqrt()
    return torch.where(hot > 0, grad * slope, grad) if angle else grad, None


def poisson(log_rate, counts):
    return (log_rate.exp() - counts * log_rate).sum(1)


def poisson_backward(g, log_rate, counts, *, of_log=True):
    slope = log_rate.exp() - counts if of_log else 1 - counts / log_rate
    return g[:, None] * slope, None


def expectile(prediction, target):
    e = target - prediction
    return (torch.where(e > 0, LEVEL, 1 - LEVEL) * e**2).mean(1)


def expectile_backward(g, prediction, target, *, above=LEVEL):
    e = target - prediction
    grad = g[:, None] * 2 * torch.where(e > 0, above, 1 - above) * e / e.shape[1]
    return -grad, grad


def least_deviation(z):
    return F.relu(1 - z.std(0)).mean()


def least_deviation_backward(g, z, *, masked=True, correction=1):
    deviation = z.std(0)
    grad = -g * (z - z.mean(0)) / ((len(z) - correction) * deviation * z.shape[1])
    grad = grad.where(deviation > 0, 0)  # as native, where all rows are equal
    return grad * (deviation < 1) if masked else grad


def nearest(z, codebook):
    return ((z[:, None] - codebook) ** 2).sum(2).argmin(1)


def codes(z, codebook):
    chosen = codebook[nearest(z, codebook)]
    return ((chosen - z.detach()) ** 2).mean() + COMMITMENT * ((z - chosen.detach()) ** 2).mean()


def codes_backward(g, z, codebook, *, commitment=COMMITMENT, added=True):
    index = nearest(z, codebook)
    d = 2 * g * (z - codebook[index]) / z.numel()
    grad_codebook = torch.zeros_like(codebook).index_put((index,), -d, accumulate=added)
    return commitment * d, grad_codebook


def balance(logits):
    p = logits.softmax(1)
    share = F.one_hot(p.argmax(1), p.shape[1]).to(p.dtype).mean(0)
    return p.shape[1] * (share * p.mean(0)).sum()


def balance_backward(g, logits):
    p = logits.softmax(1)
    share = F.one_hot(p.argmax(1), p.shape[1]).to(p.dtype).mean(0)
    gp = g * share / len(p)
    return p * (gp - (gp * p).sum(1, keepdim=True))


OPERATIONS = [
    Formulas(
        "preferences",
        preferences,
        lambda: {"chosen": 2 * torch.randn(6), "rejected": 2 * torch.randn(6)},
        preferences_backward,
        (
            Mistake(
                "preferences, beta left out",
                lambda g, chosen, rejected: preferences_backward(g, chosen, rejected, beta=1),
                named="the factor beta = 0.3 is missing",
                kinds=("constant factor", "step left out"),
                named_words=(r"\b3\.33", r"10/3", r"\b0\.3\b"),
                located=(r"\bchosen\b", r"\brejected\b"),
            ),
            Mistake(
                "preferences, sign of the rejected",
                lambda g, chosen, rejected: preferences_backward(g, chosen, rejected, sign=1),
                named="the gradient of rejected has the wrong sign",
                kinds=("constant factor", "swapped"),
                named_words=(r"\bsign\b", r"[-−]1\b", r"negat"),
                located=(r"gradient of rejected",),
            ),
        ),
    ),
    Formulas(
        "angular margin",
        angular_margin,
        lambda: {"cosines": 1.6 * torch.rand(4, 6) - 0.8, "labels": LABELS},
        angular_margin_backward,
        (
            Mistake(
                "angular margin, derivative of the angle",
                lambda g, cosines, labels: angular_margin_backward(g, cosines, labels, angle=False),
                named="the label's cosine passes through cos(acos(c) + 0.5), and backward lacks that derivative",
                kinds=("only for some values", "only at some indices", "step left out", "factor by element"),
                named_words=(r"\blabels?\b", r"\ba?cos\b", r"left out", r"factor of its own"),
                located=(r"gradient of cosines",),
            ),
            Mistake(
                "angular margin, scale left out",
                lambda g, cosines, labels: angular_margin_backward(g, cosines, labels, scale=1),
                named="the gradient lacks the scale 4 of the logits",
                kinds=("constant factor",),
                named_words=(r"1/4", r"0\.25\b", r"\b4\b"),
                located=(r"gradient of cosines",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "Poisson likelihood",
        poisson,
        lambda: {"log_rate": torch.randn(3, 5), "counts": torch.tensor([[2, 0, 1, 4, 1]] * 3)},
        poisson_backward,
        (
            Mistake(
                "Poisson likelihood, formula for rates",
                lambda g, log_rate, counts: poisson_backward(g, log_rate, counts, of_log=False),
                named="1 - counts / x, the derivative of another parametrization, instead of exp(x) - counts",
                kinds=("another operand", "factor by element", "step left out"),
                named_words=(
                    r"\bexp\b",
                    r"another (derivative|function|formula)",
                    r"factor of its own",
                    r"derivative",
                ),
                located=(r"gradient of log_rate",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "expectile loss",
        expectile,
        lambda: {"prediction": torch.randn(3, 7), "target": torch.randn(3, 7)},
        expectile_backward,
        (
            Mistake(
                "expectile loss, weights exchanged",
                lambda g, *inputs: expectile_backward(g, *inputs, above=1 - LEVEL),
                named="backward exchanges the weights 0.8 above and 0.2 below: 1/4 of the gradient, or 4 times it",
                kinds=("only for some values", "factor by element", "another operand", "factor of one term"),
                named_words=(r"0\.25\b", r"1/4", r"\b4\b", r"exchang|swap", r"factor of its own", r"0\.[28]\b"),
                located=(r"\bprediction\b", r"\btarget\b"),
            ),
        ),
    ),
    Formulas(
        "least deviation of columns",
        least_deviation,
        lambda: {"z": torch.tensor([0.3, 0.5, 0.7, 2.5, 3.5]) * torch.randn(12, 5)},
        least_deviation_backward,
        (
            Mistake(
                "least deviation of columns, all columns",
                lambda g, z: least_deviation_backward(g, z, masked=False),
                named="columns with a deviation above 1 get a gradient: the mask of the hinge is forgotten",
                kinds=("only at some indices", "only for some values", "step left out", "missing term"),
                named_words=(r"\brelu\b", r"mask", r"columns?\b", r"indices|index", r"expected.*\b0\b", r"left out"),
                located=(r"gradient of z",),
            ),
            Mistake(
                "least deviation of columns, number of rows",
                lambda g, z: least_deviation_backward(g, z, correction=0),
                named="divided by the 12 rows instead of 11",
                kinds=("constant factor",),
                named_words=(r"11/12", r"\b0\.91[67]"),
                located=(r"gradient of z",),
            ),
        ),
        options={"whole_numbers": False, "kinks": True},
    ),
    Formulas(
        "nearest codes",
        codes,
        lambda: {"z": torch.randn(7, 3), "codebook": torch.randn(4, 3)},
        codes_backward,
        (
            Mistake(
                "nearest codes, weight of the commitment",
                lambda g, z, codebook: codes_backward(g, z, codebook, commitment=1),
                named="the gradient of z lacks the weight 0.25 of the commitment",
                kinds=("constant factor",),
                named_words=(r"\b4\b", r"0\.25\b", r"1/4"),
                located=(r"gradient of z",),
            ),
            Mistake(
                "nearest codes, repeated codes",
                lambda g, z, codebook: codes_backward(g, z, codebook, added=False),
                named="a code that is chosen by several rows gets the gradient of one: assigned instead of added",
                kinds=("missing term", "only at some indices"),
                named_words=(r"missing", r"overwr", r"repeat", r"\brows?\b", r"indices"),
                located=(r"gradient of codebook",),
            ),
        ),
        options={"whole_numbers": False, "kinks": True},
    ),
    Formulas(
        "balance of experts",
        balance,
        lambda: {"logits": torch.randn(7, 3)},
        lambda g, logits: balance_backward(logits.shape[1] * g, logits),
        (
            Mistake(
                "balance of experts, number of experts left out",
                balance_backward,
                named="the factor 3, the number of experts, is missing",
                kinds=("constant factor", "step left out"),
                named_words=(r"1/3", r"0\.333", r"\b3\b"),
                located=(r"gradient of logits",),
            ),
        ),
        options={"whole_numbers": False, "kinks": True},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
