"""A step of gradient descent on the device: the batch before a network's gradients, the update and metrics after.

``state`` is four int64 numbers in device memory. NEXT and STEP count the steps since the host last wrote them: the
first kernel of a step reads NEXT and writes STEP, the last one reads STEP and writes NEXT, so that no program reads
what another one of its launch writes. FAILED is set by the first cost that is not finite; no step updates after it.
FIRST is the number of steps of the epoch before step 0.

``indices`` has a row of BATCH images for each step of the epoch, with -1 where a batch has fewer.
"""

import triton
import triton.language as tl

NEXT = tl.constexpr(0)
STEP = tl.constexpr(1)
FAILED = tl.constexpr(2)
FIRST = tl.constexpr(3)


@triton.jit
def gather_batch(
    x, labels, images, all_labels, normalized, indices, state, BATCH: tl.constexpr, PIXELS: tl.constexpr,
    IGNORE_INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One image of the next batch and its label: x (BATCH, PIXELS) of uint8 images (·, PIXELS) at ``indices``.

    ``normalized`` has the number for each of the 256 bytes. Index -1 gives a label IGNORE_INDEX, which counts for
    nothing."""
    n, tile = tl.program_id(0), tl.program_id(1)
    step = tl.load(state + NEXT)
    index = tl.load(indices + (tl.load(state + FIRST) + step) * BATCH + n)
    is_image = index >= 0
    p = tile * BLOCK + tl.arange(0, BLOCK)
    byte = tl.load(images + index * PIXELS + p, mask=(p < PIXELS) & is_image, other=0).to(tl.int32)
    tl.store(x + n * PIXELS + p, tl.load(normalized + byte), mask=p < PIXELS)
    if tile == 0:
        tl.store(labels + n, tl.load(all_labels + index, mask=is_image, other=IGNORE_INDEX))
        if n == 0:
            tl.store(state + STEP, step)


@triton.jit
def weigh_shard(grads, loss, sums, fractions, state, NUMEL: tl.constexpr, BLOCK: tl.constexpr):
    """sums ← fraction · (∂J/∂w, J): this rank's term of the sums over all ranks, where J is the mean of its shard.

    ``fractions`` has the shard's fraction of each batch of the epoch. Without images J is NaN, and the term 0."""
    pid = tl.program_id(0)
    fraction = tl.load(fractions + tl.load(state + FIRST) + tl.load(state + STEP))
    e = pid * BLOCK + tl.arange(0, BLOCK)
    grad = tl.load(grads + e, mask=e < NUMEL)
    tl.store(sums + e, tl.where(fraction > 0, fraction * grad, 0.0), mask=e < NUMEL)
    if pid == 0:
        tl.store(sums + NUMEL, tl.where(fraction > 0, fraction * tl.load(loss), 0.0))


@triton.jit
def descend(
    weights, grads, velocities, averages, rates, average_rates, loss, probs, labels, costs, num_correct, label_probs,
    state, NUMEL: tl.constexpr, MOMENTUM: tl.constexpr, AVERAGES: tl.constexpr, BATCH: tl.constexpr,
    CLASSES: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """w ← w − η v, where v ← MOMENTUM v + ∂J/∂w, in PROGRAMS programs; metrics of BN images in each of the others.

    The parameters lie in one buffer of NUMEL numbers, and so do the others. AVERAGES: averages ← averages + α (w −
    averages), for an ``average_rates`` α > 0. costs, num_correct (both by step) and label_probs (with the rows of
    ``indices``) are those before the update. num_correct must be 0 before the first step."""
    pid = tl.program_id(0)
    step = tl.load(state + STEP)
    cost = tl.load(loss)
    is_finite = tl.abs(cost) < float("inf")
    if pid < PROGRAMS:
        if is_finite & (tl.load(state + FAILED) == 0):
            e = pid * BLOCK + tl.arange(0, BLOCK)
            inside = e < NUMEL
            velocity = tl.load(grads + e, mask=inside)
            if MOMENTUM != 0:
                velocity += MOMENTUM * tl.load(velocities + e, mask=inside)
                tl.store(velocities + e, velocity, mask=inside)
            w = tl.load(weights + e, mask=inside) - tl.load(rates + step) * velocity
            tl.store(weights + e, w, mask=inside)
            if AVERAGES:
                rate = tl.load(average_rates + step)
                if rate > 0:
                    average = tl.load(averages + e, mask=inside)
                    nearer = average + rate * (w - average)
                    average = tl.where(rate < 0.5, nearer, w - (w - average) * (1 - rate))  # exactly w for rate 1
                    tl.store(averages + e, average, mask=inside)
    else:
        n = (pid - PROGRAMS) * BN + tl.arange(0, BN)
        k = tl.arange(0, BC)
        label = tl.load(labels + n, mask=n < BATCH, other=-1)
        is_image = label >= 0
        place = (tl.load(state + FIRST) + step) * BATCH + n
        ok = is_image[:, None] & (k < CLASSES)[None, :]
        p = tl.load(probs + n[:, None] * CLASSES + k[None, :], mask=ok, other=-1.0)
        is_label = k[None, :] == label[:, None]
        tl.store(label_probs + place, tl.sum(tl.where(is_label, p, 0.0), axis=1), mask=is_image)
        hits = (is_image & (tl.argmax(p, axis=1) == label)).to(tl.int32)
        tl.atomic_add(num_correct + step, tl.sum(hits, axis=0))  # whole numbers: the order does not matter
        if pid == PROGRAMS:
            tl.store(costs + step, cost)
            tl.store(state + NEXT, step + 1)
            if is_finite == 0:
                tl.store(state + FAILED, 1)
