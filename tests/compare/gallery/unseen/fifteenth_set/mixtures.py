"""Likelihoods and losses: a tree of species, a mixture of softmaxes, pairs with weights of their own."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

MARGIN = 0.25
SCALE = 2.0


def transition(length):
    decay = torch.exp(-4 * length / 3)
    return (1 - decay) / 4 + decay * torch.eye(4).to(decay)


def tree_likelihood(lengths, leaves):
    inner = leaves[0] @ transition(lengths[0]) * (leaves[1] @ transition(lengths[1]))
    root = inner @ transition(lengths[2]) * (leaves[2] @ transition(lengths[3]))
    return root.mean(1).log().sum()


def transition_slope(length):
    decay = torch.exp(-4 * length / 3)
    return decay / 3 - 4 * decay / 3 * torch.eye(4).to(decay)


class TreeLikelihoodFunction(Function):
    @staticmethod
    def forward(ctx, lengths, leaves):
        ctx.save_for_backward(lengths, leaves)
        return tree_likelihood(lengths, leaves)

    @staticmethod
    def backward(ctx, g):
        lengths, leaves = ctx.saved_tensors
        matrices, slopes = [transition(t) for t in lengths], [transition_slope(t) for t in lengths]
        first, second = leaves[0] @ matrices[0], leaves[1] @ matrices[1]
        left, right = first * second @ matrices[2], leaves[2] @ matrices[3]
        to_root = g / (left * right).sum(1, keepdim=True)
        to_inner = to_root * right @ matrices[2]
        below = (leaves[0], leaves[1], first * second, leaves[2])
        above = (to_inner * second, to_inner * first, to_root * right, to_root * left)
        to_lengths = [(a * (b @ s)).sum() for a, b, s in zip(above, below, slopes, strict=True)]
        to_leaves = [above[k] @ matrices[k] for k in (0, 1, 3)]
        return torch.stack(to_lengths), torch.stack(to_leaves)


def jukes_cantor(t):
    e = (-4.0 / 3.0 * t).exp()
    P = ((1 - e) / 4).expand(4, 4).clone()
    P.diagonal().add_(e)
    dP = (e / 3).expand(4, 4).clone()
    dP.diagonal().sub_(4.0 / 3.0 * e)
    return P, dP


class Pruning(Function):
    @staticmethod
    def forward(ctx, t, tips):
        P = [jukes_cantor(t[k])[0] for k in range(4)]
        a = tips[0] @ P[0]
        b = tips[1] @ P[1]
        c = (a * b) @ P[2]
        d = tips[2] @ P[3]
        site = 0.25 * (c * d).sum(dim=1)
        ctx.save_for_backward(t, tips, a, b, c, d, site)
        return torch.log(site).sum()

    @staticmethod
    def backward(ctx, grad):
        t, tips, a, b, c, d, site = ctx.saved_tensors
        P, dP = zip(*(jukes_cantor(t[k]) for k in range(4)), strict=True)
        grad_root = (0.25 * grad / site).unsqueeze(1)
        grad_c, grad_d = grad_root * d, grad_root * c
        grad_ab = grad_c @ P[2]
        grad_a = grad_ab * b
        grad_b = grad_ab * b
        grad_t = torch.zeros_like(t)
        grad_t[0] = (grad_a * (tips[0] @ dP[0])).sum()
        grad_t[1] = (grad_b * (tips[1] @ dP[1])).sum()
        grad_t[2] = (grad_c * ((a * b) @ dP[2])).sum()
        grad_t[3] = (grad_d * (tips[2] @ dP[3])).sum()
        return grad_t, torch.stack([grad_a @ P[0], grad_b @ P[1], grad_d @ P[3]])


def mixture_loss(logits, gate, label):
    probabilities = logits.softmax(2).gather(2, label[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
    return -(gate.softmax(1) * probabilities).sum(1).log()


class MixtureLossFunction(Function):
    @staticmethod
    def forward(ctx, logits, gate, label):
        ctx.save_for_backward(logits, gate, label)
        return mixture_loss(logits, gate, label)

    @staticmethod
    def backward(ctx, g):
        logits, gate, label = ctx.saved_tensors
        each, shares = logits.softmax(2), gate.softmax(1)
        right = torch.nn.functional.one_hot(label, logits.shape[2])[:, None]
        joint = shares * (each * right).sum(2)
        posterior = joint / joint.sum(1, keepdim=True)
        to_logits = (g[:, None] * posterior)[:, :, None] * (each - right)
        return to_logits, g[:, None] * (shares - posterior), None


class MixtureOfSoftmaxesNLL(Function):
    @staticmethod
    def forward(ctx, logits, gate, y):
        n = torch.arange(y.numel())
        p = torch.softmax(logits, dim=-1)
        pi = torch.softmax(gate, dim=-1)
        py = p[n, :, y]
        likelihood = (pi * py).sum(dim=-1)
        ctx.save_for_backward(p, pi, py, likelihood, y)
        return -torch.log(likelihood)

    @staticmethod
    def backward(ctx, grad_out):
        p, pi, py, likelihood, y = ctx.saved_tensors
        n = torch.arange(y.numel())
        resp = pi * py / likelihood.unsqueeze(-1)
        grad_gate = grad_out.unsqueeze(-1) * (pi - resp)
        delta = p.clone()
        delta[n, :, y] -= 1
        grad_logits = grad_out.view(-1, 1, 1) * pi.unsqueeze(-1) * delta
        return grad_logits, grad_gate, None


def softplus(x):
    """Without the threshold of PyTorch's, above which it returns x itself: an error of 2e-9."""
    return torch.logaddexp(x, torch.zeros_like(x))


def circle_loss(same, other):
    pull = torch.relu(1 + MARGIN - same.detach())
    push = torch.relu(other.detach() + MARGIN)
    of_same = torch.logsumexp(-SCALE * pull * (same - 1 + MARGIN), 1)
    of_other = torch.logsumexp(SCALE * push * (other - MARGIN), 1)
    return softplus(of_same + of_other)


class CircleLossFunction(Function):
    @staticmethod
    def forward(ctx, same, other):
        ctx.save_for_backward(same, other)
        return circle_loss(same, other)

    @staticmethod
    def backward(ctx, g):
        same, other = ctx.saved_tensors
        pull, push = -SCALE * torch.relu(1 + MARGIN - same), SCALE * torch.relu(other + MARGIN)
        of_same, of_other = pull * (same - 1 + MARGIN), push * (other - MARGIN)
        to_sum = g * torch.sigmoid(torch.logsumexp(of_same, 1) + torch.logsumexp(of_other, 1))
        return to_sum[:, None] * of_same.softmax(1) * pull, to_sum[:, None] * of_other.softmax(1) * push


class CircleLoss(Function):
    @staticmethod
    def forward(ctx, sp, sn):
        ap = torch.clamp(1 + MARGIN - sp, min=0)
        an = torch.clamp(sn + MARGIN, min=0)
        logit_p = -SCALE * ap * (sp - (1 - MARGIN))
        logit_n = SCALE * an * (sn - MARGIN)
        z = torch.logsumexp(logit_p, dim=1) + torch.logsumexp(logit_n, dim=1)
        ctx.save_for_backward(sp, sn, ap, an, logit_p, logit_n, z)
        return softplus(z)

    @staticmethod
    def backward(ctx, grad_out):
        sp, sn, ap, an, logit_p, logit_n, z = ctx.saved_tensors
        grad_z = (grad_out * torch.sigmoid(z)).unsqueeze(1)
        grad_lp = grad_z * torch.softmax(logit_p, dim=1)
        grad_ln = grad_z * torch.softmax(logit_n, dim=1)
        grad_sp = -SCALE * grad_lp * (ap - (ap > 0) * (sp - (1 - MARGIN)))
        grad_sn = SCALE * grad_ln * (an + (an > 0) * (sn - MARGIN))
        return grad_sp, grad_sn


OPERATIONS = [
    Operation(
        "tree of species, sibling of the second leaf",
        TreeLikelihoodFunction,
        Pruning,
        tree_likelihood,
        lambda: {"lengths": 0.2 + torch.rand(4), "leaves": 0.1 + torch.rand(3, 5, 4)},
        named="the second leaf's gradient is multiplied by its own factor b, where its sibling's, a, belongs",
        kinds=("another operand", "only at some indices", "swapped"),
        named_words=(r"instead of|should be|in place of|where .* belongs", r"sibling|operand|factor"),
        located=(r"gradient of (lengths|t)\b", r"gradient of (leaves|tips)"),
        options={"whole_numbers": False},
    ),
    Operation(
        "mixture of softmaxes, shares before the label",
        MixtureLossFunction,
        MixtureOfSoftmaxesNLL,
        mixture_loss,
        lambda: {
            "logits": torch.randn(4, 3, 5),
            "gate": torch.randn(4, 3),
            "label": torch.randint(5, (4,)),
        },
        named="logits: the prior shares pi are taken, where the posterior shares, given the label, belong",
        kinds=("another operand", "factor by element", "step left out"),
        named_words=(r"\bpi\b", r"resp\b|posterior", r"likelihood|\bpy\b"),
        located=(r"gradient of logits",),
    ),
    Operation(
        "pairs with weights of their own, weights differentiated",
        CircleLossFunction,
        CircleLoss,
        circle_loss,
        lambda: {"same": torch.tanh(torch.randn(4, 3)), "other": torch.tanh(torch.randn(4, 5))},
        named="the weights of the pairs are constants (detached), and backward differentiates them too",
        kinds=("another operand", "factor of one term"),
        named_words=(r"constant", r"detach", r"relu|weight"),
        located=(r"gradient of (same|sp)", r"gradient of (other|sn)"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
