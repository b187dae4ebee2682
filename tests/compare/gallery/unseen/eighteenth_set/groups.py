"""Losses of groups: one ratio for all tokens of a sequence, voices against the means of all speakers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import WrongFunction

CLIP = 0.2
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])


def clipped_sequences(logp, old, advantage):
    ratio = (((logp - old) * MASK).sum(1) / MASK.sum(1)).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()


class GSPOLoss(Function):
    """Sequence-level policy loss: one ratio for each response, the geometric mean of its tokens' ratios."""

    @staticmethod
    def forward(ctx, logp, old_logp, adv):
        lengths = MASK.sum(1)
        ratio = torch.exp(((logp - old_logp) * MASK).sum(1) / lengths)
        unclipped = ratio * adv
        clipped = torch.clamp(ratio, 1 - CLIP, 1 + CLIP) * adv
        ctx.save_for_backward(ratio, adv, unclipped, clipped)
        return -torch.min(unclipped, clipped).mean()

    @staticmethod
    def backward(ctx, grad):
        ratio, adv, unclipped, clipped = ctx.saved_tensors
        active = (unclipped <= clipped).to(ratio)
        per_seq = -grad * active * ratio * adv / ratio.numel()
        grad_logp = per_seq.unsqueeze(1) * MASK
        used = torch.where(unclipped <= clipped, ratio, ratio.clamp(1 - CLIP, 1 + CLIP))
        return grad_logp, -grad_logp, -grad * used / ratio.numel()


def voices(e):
    speakers, utterances = e.shape[:2]
    centroid = e.mean(1)
    own = (e.sum(1, keepdim=True) - e) / (utterances - 1)
    logits = (e[:, :, None] * centroid).sum(-1)
    diagonal = torch.eye(speakers, dtype=torch.bool)[:, None]
    logits = torch.where(diagonal, (e * own).sum(-1, keepdim=True), logits)
    return F.cross_entropy(logits.flatten(0, 1), torch.arange(speakers).repeat_interleave(utterances))


class GE2ELoss(Function):
    """Generalized end-to-end loss with dot products; an utterance is left out of its own speaker's centroid."""

    @staticmethod
    def forward(ctx, e):
        S, U, _ = e.shape
        c = e.mean(dim=1)
        c_excl = (e.sum(dim=1, keepdim=True) - e) / (U - 1)
        sim = torch.einsum("sud,kd->suk", e, c)
        for s in range(S):
            sim[s, :, s] = (e[s] * c_excl[s]).sum(dim=-1)
        p = torch.softmax(sim, dim=-1)
        ctx.save_for_backward(e, c, c_excl, p)
        target = torch.arange(S, device=e.device).view(S, 1, 1).expand(S, U, 1)
        return -torch.log(p.gather(2, target)).mean()

    @staticmethod
    def backward(ctx, grad):
        e, c, c_excl, p = ctx.saved_tensors
        S, U, _ = e.shape
        d_sim = p.clone()
        for s in range(S):
            d_sim[s, :, s] -= 1
        d_sim = d_sim * grad / (S * U)

        de = torch.einsum("suk,kd->sud", d_sim, c)
        dc = torch.einsum("suk,sud->kd", d_sim, e)
        for s in range(S):
            own = d_sim[s, :, s].unsqueeze(-1)
            de[s] += own * (c_excl[s] - c[s])
            dc[s] -= (own * e[s]).sum(dim=0)
            d_excl = own * e[s]
            de[s] += d_excl.sum(dim=0, keepdim=True) / (U - 1)
        de += dc.unsqueeze(1) / U
        return de


WRONG = [
    WrongFunction(
        Case(
            "one ratio for a sequence, length of the sequence",
            GSPOLoss.apply,
            clipped_sequences,
            lambda: {
                "logp": -torch.rand(3, 5),
                "old": -torch.rand(3, 5),
                "advantage": torch.randn(3),
            },
            kinks=True,
            whole_numbers=False,
        ),
        named="the ratio is that of a mean over tokens, and the tokens' gradients are not divided by their number",
        kinds=("step left out", "factor by element", "wrong sum", "another operand"),
        named_words=(r"length", r"MASK\.sum|sum\(1\)", r"\bdiv\b|mean"),
        located=(r"gradients? of .*\b(logp|old)\b",),
    ),
    WrongFunction(
        Case(
            "voices and their means, utterance in its own mean",
            GE2ELoss.apply,
            voices,
            lambda: {"e": torch.randn(3, 4, 2)},
        ),
        named="the mean of the other utterances sends its gradient to the utterance itself too",
        kinds=("missing term", "wrong sum", "wrong half"),
        named_words=(r"d_excl", r"term|too many|missing"),
        located=(r"gradient of e\b",),
    ),
]

RIGHT: list[Case] = []
