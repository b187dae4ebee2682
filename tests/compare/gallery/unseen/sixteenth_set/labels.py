"""Labels: items of a test, words in a tree of classes, labels of which most are absent."""

from __future__ import annotations

import torch
from torch.autograd import Function
from torch.nn import functional as F

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

WORDS = torch.tensor([0, 3, 5, 1, 3])
PATHS = torch.tensor([[0, 1, 3], [0, 1, 3], [0, 1, 4], [0, 2, 5], [0, 2, 5], [0, 2, 6]])
TURNS = torch.tensor([[1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1], [-1, 1, -1], [-1, -1, 1]])
PRESENT = torch.tensor([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1]])
MARGIN = 0.2


def right_answers(ability, slope, difficulty, guess):
    known = torch.sigmoid(slope * (ability[:, None] - difficulty))
    return guess + (1 - guess) * known


class RightAnswersFunction(Function):
    @staticmethod
    def forward(ctx, ability, slope, difficulty, guess):
        ctx.save_for_backward(ability, slope, difficulty, guess)
        return right_answers(ability, slope, difficulty, guess)

    @staticmethod
    def backward(ctx, g):
        ability, slope, difficulty, guess = ctx.saved_tensors
        distance = ability[:, None] - difficulty
        known = torch.sigmoid(slope * distance)
        to_logit = g * (1 - guess) * known * (1 - known)
        grad_difficulty = -(to_logit * slope).sum(0)
        return (to_logit * slope).sum(1), (to_logit * distance).sum(0), grad_difficulty, (g * (1 - known)).sum(0)


class ThreePL(Function):
    """Three-parameter logistic model of item response theory."""

    @staticmethod
    def forward(ctx, theta, a, b, c):
        z = a * (theta.unsqueeze(1) - b)
        p = c + (1 - c) * torch.sigmoid(z)
        ctx.save_for_backward(theta, a, b, c, p)
        return p

    @staticmethod
    def backward(ctx, grad_p):
        theta, a, b, c, p = ctx.saved_tensors
        grad_z = grad_p * (1 - c) * p * (1 - p)
        grad_theta = (grad_z * a).sum(1)
        grad_a = (grad_z * (theta.unsqueeze(1) - b)).sum(0)
        grad_b = -(grad_z * a).sum(0)
        grad_c = (grad_p * (1 - p) / (1 - c)).sum(0)
        return grad_theta, grad_a, grad_b, grad_c


def losses_in_a_tree(hidden, nodes):
    scores = (nodes[PATHS[WORDS]] * hidden[:, None]).sum(2)
    return -F.logsigmoid(TURNS[WORDS] * scores).sum(1)


class LossesInATreeFunction(Function):
    @staticmethod
    def forward(ctx, hidden, nodes):
        ctx.save_for_backward(hidden, nodes)
        return losses_in_a_tree(hidden, nodes)

    @staticmethod
    def backward(ctx, g):
        hidden, nodes = ctx.saved_tensors
        on_path = nodes[PATHS[WORDS]]
        turns = TURNS[WORDS]
        scores = (on_path * hidden[:, None]).sum(2)
        to_scores = -g[:, None] * turns * torch.sigmoid(-turns * scores)
        to_nodes = to_scores[:, :, None] * hidden[:, None]
        grad_nodes = torch.zeros_like(nodes).index_add(0, PATHS[WORDS].flatten(), to_nodes.flatten(0, 1))
        return (to_scores[:, :, None] * on_path).sum(1), grad_nodes


class HierarchicalSoftmax(Function):
    @staticmethod
    def forward(ctx, h, node_weight):
        path, code = PATHS[WORDS], TURNS[WORDS].to(h)
        margin = code * torch.einsum("bd,bkd->bk", h, node_weight[path])
        ctx.save_for_backward(h, node_weight, margin)
        return F.softplus(-margin).sum(dim=1)

    @staticmethod
    def backward(ctx, grad_loss):
        h, node_weight, margin = ctx.saved_tensors
        path, code = PATHS[WORDS], TURNS[WORDS].to(h)
        grad_score = -code * torch.sigmoid(-margin) * grad_loss.unsqueeze(1)
        grad_h = torch.einsum("bk,bkd->bd", grad_score, node_weight[path])
        grad_node_weight = torch.zeros_like(node_weight)
        grad_node_weight[path] += grad_score.unsqueeze(2) * h.unsqueeze(1)
        return grad_h, grad_node_weight


def losses_of_rare_labels(logits):
    shifted = (torch.sigmoid(logits) - MARGIN).clamp(min=0)
    absent = -(shifted**3) * torch.log(1 - shifted)
    return torch.where(PRESENT == 1, -F.logsigmoid(logits), absent).sum(1)


class AsymmetricLoss(Function):
    @staticmethod
    def forward(ctx, logits):
        y = PRESENT.to(logits)
        p = torch.sigmoid(logits)
        pm = (p - MARGIN).clamp(min=0)
        log_1m = torch.log1p(-pm)
        loss = -(y * F.logsigmoid(logits) + (1 - y) * pm**3 * log_1m).sum(dim=1)
        d_neg = (-3 * pm**2 * log_1m + pm**3 / (1 - pm)) * (pm > 0)
        ctx.save_for_backward(-y * (1 - p) + (1 - y) * d_neg * p * (1 - p))
        return loss

    @staticmethod
    def backward(ctx, grad_output):
        (grad_logits,) = ctx.saved_tensors
        return grad_logits * grad_output[0]


OPERATIONS = [
    Operation(
        "items of a test, slope with the guesses",
        RightAnswersFunction,
        ThreePL,
        right_answers,
        lambda: {
            "ability": torch.randn(6),
            "slope": 0.5 + torch.rand(4),
            "difficulty": torch.randn(4),
            "guess": 0.1 + 0.2 * torch.rand(4),
        },
        named="the sigmoid's slope is made of the probability with the guesses, not of the sigmoid alone",
        kinds=("another operand", "step left out", "factor by element"),
        named_words=(r"sigmoid", r"guess|\bc\b", r"\bp \* \(1 - p\)|\bp\b"),
        located=(r"gradient of (ability|theta)", r"gradient of (slope|a)\b", r"gradient of (difficulty|b)\b"),
        options={"whole_numbers": False},
    ),
    Operation(
        "words in a tree, nodes of several words",
        LossesInATreeFunction,
        HierarchicalSoftmax,
        losses_in_a_tree,
        lambda: {"hidden": torch.randn(5, 4), "nodes": torch.randn(7, 4)},
        named="nodes: += with repeated indices keeps one word's part of a node instead of adding all",
        kinds=("only at some indices", "wrong sum", "few elements", "missing term"),
        named_words=(r"repeat|duplicate|overwrit|written over|once|several", r"index_add|accumulate|scatter_add"),
        located=(r"gradient of node",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "rare labels, incoming gradient of the first",
            AsymmetricLoss.apply,
            losses_of_rare_labels,
            lambda: {"logits": torch.randn(5, 4)},
        ),
        named="every row is multiplied by the incoming gradient of the first row",
        kinds=("another operand", "factor by element", "only at some indices", "ignores the incoming gradient"),
        named_words=(
            r"first|\[0\]|row 0|element 0|index 0",
            r"incoming gradient|grad_output",
            r"one number|unsqueeze",
        ),
        located=(r"gradient of logits",),
    ),
]
