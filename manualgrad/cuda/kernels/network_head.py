"""The end of a network: its last dense layers, softmax and cross-entropy with their gradients, (11) to (20)."""

import triton
import triton.language as tl

from manualgrad.cuda.kernels.exponential import exp_nonpositive, log_normal
from manualgrad.cuda.kernels.network_parts import product, relu, relu_backward


@triton.jit
def loss_of_rows(s, label, inside, num_labels, factor, CLASSES: tl.constexpr, C: tl.constexpr, IGNORE: tl.constexpr):
    """S(s), −log S of the labels, and factor · ∂J/∂s, of logits s (rows, C), where C is CLASSES and padding.

    A label that is to be ignored has loss and gradient 0; one that is no class has NaN."""
    k = tl.arange(0, C)[None, :]
    s = tl.where(k < CLASSES, s, -float("inf"))
    s = s - tl.max(s, axis=1)[:, None]
    e = exp_nonpositive(s)
    total = tl.sum(e, axis=1)
    hit = k == label[:, None]
    is_counted = inside & (label != IGNORE)
    is_class = (label >= 0) & (label < CLASSES)
    loss = log_normal(total) - tl.sum(tl.where(hit, s, 0.0), axis=1)  # eq. (12), (14)
    loss = tl.where(is_counted, tl.where(is_class, loss, float("nan")), 0.0)
    p = e / total[:, None]  # eq. (11)
    grad = factor * ((p - tl.where(hit, 1.0, 0.0)) / num_labels)  # eq. (13), (15), (19)
    grad = tl.where(is_counted[:, None], tl.where(is_class[:, None], grad, float("nan")), 0.0)
    return p, loss, tl.where(k < CLASSES, grad, 0.0)


@triton.jit
def sum_of_parts(z_parts, bias, n, h, N, HIDDEN: tl.constexpr, PARTS: tl.constexpr):
    """z of images n and features h: the sum of z_parts (PARTS, N, HIDDEN), and the bias."""
    at = n[:, None] * HIDDEN + h[None, :]
    inside = (n < N)[:, None] & (h < HIDDEN)[None, :]
    z = tl.load(z_parts + at, mask=inside, other=0.0)
    for part in tl.static_range(1, PARTS):
        z += tl.load(z_parts + part * N * HIDDEN + at, mask=inside, other=0.0)
    return z + tl.load(bias + h, mask=h < HIDDEN, other=0.0)[None, :]  # eq. (17)


@triton.jit
def head(
    z_parts, z, x_weight, x_bias, weight, bias, labels, num_labels, factor, logits, probs, losses, grad_logits,
    grad_z, grad_x, N, IN: tl.constexpr, HIDDEN: tl.constexpr, CLASSES: tl.constexpr, PARTS: tl.constexpr,
    MODE: tl.constexpr, SUBGRADIENT: tl.constexpr, IGNORE_INDEX: tl.constexpr, FACTOR_IN_MEMORY: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The last two dense layers with ReLU between them: BM images and BN of the first one's inputs a program.

    MODE "logits": z = the sum of z_parts + x_bias, logits = R(z) weightᵀ + bias; both are stored.
    MODE "loss": z and the logits, then probs, losses, and grad_logits, grad_z, grad_x by backward, with
    ``factor`` in them, which is an address with FACTOR_IN_MEMORY, as in a CUDA graph.
    MODE "backward": grad_z and grad_x from grad_logits and z, which are read.

    BN = 0 leaves grad_x out. x_weight is (HIDDEN, IN), weight (CLASSES, HIDDEN), of which BH features are in
    registers at a time. BC is CLASSES, padded."""
    n = tl.program_id(0) * BM + tl.arange(0, BM)
    k = tl.arange(0, BC)
    inside = n < N
    at_class = n[:, None] * CLASSES + k[None, :]
    ok_class = inside[:, None] & (k < CLASSES)[None, :]
    is_first = tl.program_id(1) == 0  # its programs store what does not depend on the tile of grad_x
    if MODE == "backward":
        grad = tl.load(grad_logits + at_class, mask=ok_class, other=0.0)
    else:
        s = tl.zeros((BM, BC), dtype=tl.float32)
        for h0 in tl.static_range(0, HIDDEN, BH):
            h = h0 + tl.arange(0, BH)
            ok_weight = (k < CLASSES)[:, None] & (h < HIDDEN)[None, :]
            w = tl.load(weight + k[:, None] * HIDDEN + h[None, :], mask=ok_weight, other=0.0)
            z_tile = sum_of_parts(z_parts, x_bias, n, h, N, HIDDEN, PARTS)
            s += product(relu(z_tile), tl.trans(w), PRECISION)  # eq. (16), (17), σ = R, f = D
            if is_first:
                ok_hidden = inside[:, None] & (h < HIDDEN)[None, :]
                tl.store(z + n[:, None] * HIDDEN + h[None, :], z_tile, mask=ok_hidden)
        s += tl.load(bias + k, mask=k < CLASSES, other=0.0)[None, :]
    if MODE == "logits":
        tl.store(logits + at_class, s, mask=ok_class)
    if MODE == "loss":
        label = tl.load(labels + n, mask=inside, other=IGNORE_INDEX)
        count = tl.load(num_labels).to(tl.float32)
        rate = tl.load(factor) if FACTOR_IN_MEMORY else factor
        p, loss, grad = loss_of_rows(s, label, inside, count, rate, CLASSES, BC, IGNORE_INDEX)
        if is_first:
            tl.store(probs + at_class, p, mask=ok_class)
            tl.store(losses + n, loss, mask=inside)
            tl.store(grad_logits + at_class, grad, mask=ok_class)
    if MODE != "logits":
        if BN > 0:
            c = tl.program_id(1) * BN + tl.arange(0, BN)
            g = tl.zeros((BM, BN), dtype=tl.float32)
        for h0 in tl.static_range(0, HIDDEN, BH):
            h = h0 + tl.arange(0, BH)
            at_hidden = n[:, None] * HIDDEN + h[None, :]
            ok_hidden = inside[:, None] & (h < HIDDEN)[None, :]
            if MODE == "backward":
                z_tile = tl.load(z + at_hidden, mask=ok_hidden, other=0.0)
            elif BH < HIDDEN:
                z_tile = sum_of_parts(z_parts, x_bias, n, h, N, HIDDEN, PARTS)
            if (MODE == "backward") | (BH < HIDDEN):
                ok_weight = (k < CLASSES)[:, None] & (h < HIDDEN)[None, :]
                w = tl.load(weight + k[:, None] * HIDDEN + h[None, :], mask=ok_weight, other=0.0)
            if BN > 0:
                ok_x_weight = (h < HIDDEN)[:, None] & (c < IN)[None, :]
                w_x = tl.load(x_weight + h[:, None] * IN + c[None, :], mask=ok_x_weight, other=0.0)
            delta = relu_backward(product(grad, w, PRECISION), z_tile, SUBGRADIENT)  # eq. (20), ∂D/∂x and ∂R/∂z
            if is_first:
                tl.store(grad_z + at_hidden, delta, mask=ok_hidden)
            if BN > 0:
                g += product(delta, w_x, PRECISION)  # eq. (20), ∂D/∂x
        if BN > 0:
            tl.store(grad_x + n[:, None] * IN + c[None, :], g, mask=inside[:, None] & (c < IN)[None, :])


@triton.jit
def softmax_cross_entropy_rows(
    logits, labels, num_labels, factor, probs, losses, grad_logits, N, CLASSES: tl.constexpr,
    IGNORE_INDEX: tl.constexpr, FACTOR_IN_MEMORY: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """probs, losses and grad_logits of logits (N, CLASSES), for networks whose end ``head`` does not compute."""
    n = tl.program_id(0) * BM + tl.arange(0, BM)
    k = tl.arange(0, BC)
    inside = n < N
    at, ok = n[:, None] * CLASSES + k[None, :], inside[:, None] & (k < CLASSES)[None, :]
    s = tl.load(logits + at, mask=ok, other=0.0)
    label = tl.load(labels + n, mask=inside, other=IGNORE_INDEX)
    count = tl.load(num_labels).to(tl.float32)
    rate = tl.load(factor) if FACTOR_IN_MEMORY else factor
    p, loss, grad = loss_of_rows(s, label, inside, count, rate, CLASSES, BC, IGNORE_INDEX)
    tl.store(probs + at, p, mask=ok)
    tl.store(losses + n, loss, mask=inside)
    tl.store(grad_logits + at, grad, mask=ok)


@triton.jit
def dense_grad_input(
    grad_x, grad_out, weight, z, N, IN: tl.constexpr, OUT: tl.constexpr, HAS_RELU: tl.constexpr,
    SUBGRADIENT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_out weight, times ∂R/∂z with HAS_RELU: BM images and BN of the IN inputs of a dense layer (OUT, IN)."""
    n = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    g = tl.zeros((BM, BN), dtype=tl.float32)
    for k0 in range(0, OUT, BK):
        k = k0 + tl.arange(0, BK)
        d = tl.load(grad_out + n[:, None] * OUT + k[None, :], mask=(n < N)[:, None] & (k < OUT)[None, :], other=0.0)
        w = tl.load(weight + k[:, None] * IN + c[None, :], mask=(k < OUT)[:, None] & (c < IN)[None, :], other=0.0)
        g += product(d, w, PRECISION)  # eq. (20), ∂D/∂x
    at, ok = n[:, None] * IN + c[None, :], (n < N)[:, None] & (c < IN)[None, :]
    if HAS_RELU:
        g = relu_backward(g, tl.load(z + at, mask=ok, other=0.0), SUBGRADIENT)  # eq. (20), ∂R/∂z
    tl.store(grad_x + at, g, mask=ok)
