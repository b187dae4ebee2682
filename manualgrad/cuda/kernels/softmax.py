"""Softmax, equation (11), and its backward, equation (12). A row that fits into BLOCK (ONE_TILE) is read once."""

import triton
import triton.language as tl

from manualgrad.cuda.kernels.exponential import exp_nonpositive
from manualgrad.cuda.kernels.rows import classes_from, load_tile, program_rows, row_stats


@triton.jit
def softmax_forward(
    out, z, ROWS, B, CLASSES, oa, ob, oc, za, zb, zc,
    ROW_BLOCK: tl.constexpr, BLOCK: tl.constexpr, ONE_TILE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """S(z) of each row, computed as S(z − max z)."""
    row, row_exists = program_rows(ROWS, ROW_BLOCK, WIDE)
    z_at, out_at = (row // B) * za + (row % B) * zb, (row // B) * oa + (row % B) * ob
    if ONE_TILE:
        c, class_exists = classes_from(0, CLASSES, BLOCK, WIDE)
        values = load_tile(z, z_at, zc, row_exists, c, class_exists, float("-inf"))
        e = exp_nonpositive(values - tl.max(values, 1)[:, None])
        s = e * tl.div_rn(1.0, tl.sum(e, 1))[:, None]  # eq. (11)
        mask = row_exists[:, None] & class_exists[None, :]
        tl.store(out + (out_at[:, None] + (c * oc)[None, :]), s.to(out.dtype.element_ty), mask=mask)
    else:
        largest, total = row_stats(z, z_at, zc, row_exists, CLASSES, ROW_BLOCK, BLOCK, WIDE)
        inverse = tl.div_rn(1.0, total)
        for start in range(0, CLASSES, BLOCK):
            c, class_exists = classes_from(start, CLASSES, BLOCK, WIDE)
            values = load_tile(z, z_at, zc, row_exists, c, class_exists, float("-inf"))
            s = exp_nonpositive(values - largest[:, None]) * inverse[:, None]  # eq. (11)
            mask = row_exists[:, None] & class_exists[None, :]
            tl.store(out + (out_at[:, None] + (c * oc)[None, :]), s.to(out.dtype.element_ty), mask=mask)


@triton.jit
def softmax_backward(
    grad_z, g, s, ROWS, B, CLASSES, oa, ob, oc, ga, gb, gc, sa, sb, sc,
    ROW_BLOCK: tl.constexpr, BLOCK: tl.constexpr, ONE_TILE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """S ⊙ (g − Σ_i g_i S_i) of each row."""
    row, row_exists = program_rows(ROWS, ROW_BLOCK, WIDE)
    g_at, s_at = (row // B) * ga + (row % B) * gb, (row // B) * sa + (row % B) * sb
    out_at = (row // B) * oa + (row % B) * ob
    dot = tl.zeros([ROW_BLOCK], tl.float32)
    if ONE_TILE:
        c, class_exists = classes_from(0, CLASSES, BLOCK, WIDE)
        g_c = load_tile(g, g_at, gc, row_exists, c, class_exists, 0.0)
        s_c = load_tile(s, s_at, sc, row_exists, c, class_exists, 0.0)
        grad = s_c * (g_c - tl.sum(g_c * s_c, 1)[:, None])  # eq. (12)
        mask = row_exists[:, None] & class_exists[None, :]
        tl.store(grad_z + (out_at[:, None] + (c * oc)[None, :]), grad.to(grad_z.dtype.element_ty), mask=mask)
    else:
        for start in range(0, CLASSES, BLOCK):
            c, class_exists = classes_from(start, CLASSES, BLOCK, WIDE)
            g_c = load_tile(g, g_at, gc, row_exists, c, class_exists, 0.0)
            dot += tl.sum(g_c * load_tile(s, s_at, sc, row_exists, c, class_exists, 0.0), 1)
        for start in range(0, CLASSES, BLOCK):
            c, class_exists = classes_from(start, CLASSES, BLOCK, WIDE)
            g_c = load_tile(g, g_at, gc, row_exists, c, class_exists, 0.0)
            grad = load_tile(s, s_at, sc, row_exists, c, class_exists, 0.0) * (g_c - dot[:, None])  # eq. (12)
            mask = row_exists[:, None] & class_exists[None, :]
            tl.store(grad_z + (out_at[:, None] + (c * oc)[None, :]), grad.to(grad_z.dtype.element_ty), mask=mask)
