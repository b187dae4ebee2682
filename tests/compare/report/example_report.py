"""Sections with everything that a report can have, hostile names included, and a parser of its page."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import numpy as np
from matplotlib.figure import Figure

from compare import run_info
from compare.sections import MarkdownPage, Picture, Section, Table

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"


# ------------------------------------------------------------------------------------------------ example sections


def loss_curves() -> Figure:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    steps = np.arange(2800)
    for shift, colour, label in ((0, "#3b82c4", "ours"), (0.02, "#e08214", "native")):
        noise = rng.normal(0, 0.08, len(steps))
        axes.plot(steps, 2.3 * np.exp(-steps / 400) + 0.05 + shift + abs(noise), color=colour, label=label, lw=0.8)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="training loss, seed 0")
    axes.legend()
    return figure


def heat_maps() -> Figure:
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    image = None
    for axes, seed in zip(figure.subplots(1, 3), range(3), strict=True):
        error = np.random.default_rng(seed).normal(0, 1, (24, 24))
        image = axes.imshow(error, cmap="RdBu_r", vmin=-3, vmax=3)
        axes.set_title(("ours", "native", "difference")[seed])
    figure.colorbar(image, ax=figure.axes, shrink=0.8)
    return figure


GRADIENTS = Table(
    "Every gradient, against float64",
    ["gradient", "dtype", "layout", "max absolute", "max relative", "ulp", "ours / native", "of tolerance",
     "worst element", "ours", "native", "cosine"],
    [
        [f"{('conv2d', 'max_pool2d', 'dense', 'relu', 'softmax_cross_entropy')[n % 5]}, gradient of "
         f"{('input', 'weight', 'bias')[n % 3]}", ("float64", "float32", "bfloat16", "float16")[n % 4],
         ("contiguous", "channels_last", "transposed", "expanded")[n % 4],
         1.2345e-16 * 10 ** (n % 9), 3.2e-7 / (n + 1),
         0.5 * n, 1 + n / 77, n / 60, f"({n}, 0, {n % 7}, 3)", math.sin(n), math.nan if n == 7 else math.sin(n),
         1.0 if n else 0.0]
        for n in range(60)
    ],
    note="A ratio of 1 means that ours and native have the same error.",
    failed=[7, 31],
)  # fmt: skip

FAILURES = [
    "conv2d, gradient of weight, float32: off by 1.2e-3 at (7, 0, 0, 3), 310 times the tolerance (flipped).",
    f"{HOSTILE}: the case with a hostile name is off by a factor of 2.",
]

RUN_INFO = run_info.RunInfo(
    command=f"python -m compare all --cases '{HOSTILE}'",
    utc="2031-02-03 04:05:06 UTC",
    commit="0123456789abcdef0123456789abcdef01234567",
    versions={"python": "3.12.1", "torch": "2.14.1"},
    processor="AMD EPYC, AVX512",
    cores=2,
    device="cpu",
    threads=2,
    allocator="glibc 2.36",
    environment={"OMP_NUM_THREADS": "2"},
    seeds=(0, 1, 2),
    dataset="mnist",
    source=f"files in torchvision's layout, {HOSTILE}",
)


def example_sections() -> list[Section]:
    """Three sections: one fails, one passes, one is a Markdown page."""
    curves = Picture("Loss of every step", loss_curves, "Two falling curves that coincide", "2,800 steps.")
    where = Picture("Heat maps of the errors", heat_maps, f"Three heat maps of noise {HOSTILE}")
    all_kinds_of_cells = Table(
        f"All kinds of cells {HOSTILE}",
        ["what", "value", "holds", "spread"],
        [[HOSTILE, 0.0, True, "99.23 ± 0.04 %"], ["a|b *c* _d_", math.inf, False, ""], ["", None, None, "1.02×"]],
    )
    text = f"With {HOSTILE}, 1 * 2 * 3 and a_b_c are shown unchanged."
    markdown_page = MarkdownPage("A page", MARKDOWN, "docs/example.md in the repository")
    data = {"rows": [[1, 0.1, math.nan], [2, -math.inf, None]], "name": HOSTILE, "ok": True, "n": np.float32(0.5)}
    accuracy = f"Accuracy {HOSTILE}"
    return [
        Section("gradients", "Gradients", [text], [GRADIENTS, where], FAILURES, data, 1840),
        Section("training", accuracy, ["All well."], [all_kinds_of_cells, curves], [], {}, 20),
        Section("equations", "The equations", [], [markdown_page], [], {}),
    ]


MARKDOWN = f"""
## How to read it

See [(1)](#equation-1), [elsewhere](https://example.org/page) [bad](javascript:alert(1)) and ![a picture](https://example.org/x.png).

### Equation (1)

$$C_{{ijk}}(\\mathbf{{x}}) = \\sum_{{p,q}} x_{{(s_1 i+p)}} \\frac{{1}}{{2}} \\qquad (1)$$

`conv2d.py`, [line 70](../manualgrad/conv2d.py#L70): [test.py::test_it](../tests/test.py#L181).

| x | y |
| --- | --- |
| 1 | {HOSTILE} |

{HOSTILE}

$$C_{{ijk}}(\\mathbf{{x}}) = \\sum_{{p,q}} x_{{(s_1 i+p)}} \\frac{{1}}{{2}} \\qquad (1)$$
"""


# ----------------------------------------------------------------------------------------------- parsed reports


class Page(HTMLParser):
    """A parsed HTML page: its elements with their attributes, and all of its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, *names: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements for name in names if name in attributes]


def collapse_spaces(text: str) -> str:
    return re.sub(r"\s+", " ", text)
