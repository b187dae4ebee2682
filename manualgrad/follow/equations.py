"""The 23 equations of the formula sheet in TeX, as docs/equations.md reads them, and their form for this network."""

from __future__ import annotations

EQUATIONS: dict[int, tuple[str, ...]] = {
    1: (r"C_{ijk}(\mathbf{x}, \mathbf{w}) = \sum_{p,q,r} x_{(s_1 i+p)(s_2 j+q)r} w_{(P-p)(Q-q)rk}",),
    2: (r"\frac{\partial C_{ijk}}{\partial x_{tuv}} = w_{(P+s_1 i-t)(Q+s_2 j-u)vk}",),
    3: (r"\frac{\partial C_{ijk}}{\partial w_{ctuv}} = x_{(s_1 i+P-c)(s_2 j+Q-t)u} \delta_{kv}",),
    4: (r"P_{ijk}(\mathbf{x}) = \max_{p,q} x_{(s_1 i+p)(s_2 j+q)k}",),
    5: (r"F_{(iJK+jK+k)}(\mathbf{x}) = x_{ijk}",),
    6: (r"D_j(\mathbf{x}, \mathbf{w}) = \sum_i x_i w_{ij}",),
    7: (r"\frac{\partial D_j}{\partial x_k} = w_{kj}",),
    8: (r"\frac{\partial D_j}{\partial w_{ck}} = x_c \delta_{jk}",),
    9: (r"R_i(\mathbf{z}) = z_i \quad (z_i \geq 0), \qquad R_i(\mathbf{z}) = 0 \quad (z_i < 0)",),
    10: (
        r"\frac{\partial R_i}{\partial z_j} = \delta_{ij} \quad (z_i > 0), \qquad "
        r"\frac{1}{2} \delta_{ij} \quad (z_i = 0), \qquad 0 \quad (z_i < 0)",
    ),
    11: (r"S_i(\mathbf{z}) = \frac{e^{z_i}}{\sum_k e^{z_k}}",),
    12: (r"\frac{\partial S_i}{\partial z_j} = S_i (\delta_{ij} - S_j)",),
    13: (r"J = \frac{1}{B} \sum_b J^b",),
    14: (r"J^b = - \sum_i y_i \log x_i^{Lb}",),
    15: (r"\frac{\partial J^b}{\partial z_j^{(L-1)b}} = x_j^{Lb} \sum_k y_k - y_j",),
    16: (r"\mathbf{x}^l = \sigma^{l-1}(\mathbf{z}^{l-1})",),
    17: (r"\mathbf{z}^l = \mathbf{f}^l(\mathbf{x}^l, \mathbf{w}^l) + \mathbf{b}^l",),
    18: (
        r"\Delta b_i^{lb} = - \eta \frac{\partial J^b}{\partial b_i^{lb}} "
        r"= - \eta \frac{\partial J^b}{\partial z_i^{lb}} = \delta_i^{lb}",
    ),
    19: (
        r"\delta_i^{(L-1)b} = - \eta \frac{\partial J^b}{\partial x_j^{Lb}} "
        r"\frac{\partial \sigma_j^{(L-1)b}}{\partial z_i^{(L-1)b}}",
    ),
    20: (
        r"\delta_i^{(l-1)b} = \delta_j^{lb} \frac{\partial f_j^{lb}}{\partial x_k^{lb}} "
        r"\frac{\partial \sigma_k^{(l-1)b}}{\partial z_i^{(l-1)b}}",
    ),
    21: (
        r"\Delta w_{ij}^{lb} = - \eta \frac{\partial J^b}{\partial w_{ij}^{lb}} "
        r"= \delta_k^{lb} \frac{\partial f_k^l}{\partial w_{ij}^{lb}}",
    ),
    22: (r"L = 4",),
    23: (
        r"\sigma^0 = \mathbf{P}(\mathbf{R}(\mathbf{z}^0)), \qquad "
        r"\mathbf{f}^0 = \mathbf{C}(\mathbf{x}^0, \mathbf{w}^0)",
        r"\sigma^1 = \mathbf{F}(\mathbf{P}(\mathbf{R}(\mathbf{z}^1))), \qquad "
        r"\mathbf{f}^1 = \mathbf{C}(\mathbf{x}^1, \mathbf{w}^1)",
        r"\sigma^2 = \mathbf{R}(\mathbf{z}^2), \qquad \mathbf{f}^2 = \mathbf{D}(\mathbf{x}^2, \mathbf{w}^2)",
        r"\sigma^3 = \mathbf{S}(\mathbf{z}^3), \qquad \mathbf{f}^3 = \mathbf{D}(\mathbf{x}^3, \mathbf{w}^3)",
    ),
}

# The recursion of section 4.2: (19) and (20) for this network.
RECURSION = {
    3: r"\delta^3 = - \eta (\mathbf{x}^4 - \mathbf{y})",
    2: r"\delta^2 = \delta^3 \frac{\partial D}{\partial x^3} \frac{\partial R}{\partial z^2}",
    1: r"\delta^1 = P^{-1}(F^{-1}(\delta^2 \frac{\partial D}{\partial x^2})) \frac{\partial R}{\partial z^1}",
    0: r"\delta^0 = P^{-1}(\delta^1 \frac{\partial C}{\partial x^1}) \frac{\partial R}{\partial z^0}",
}
