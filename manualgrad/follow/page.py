"""The page as one HTML file: text, pictures, numbers, style and script, for displays of any width, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any

import jinja2
from markupsafe import Markup

from manualgrad.follow.break_it import Panel
from manualgrad.follow.encoding import as_script, encode_all
from manualgrad.follow.equations import EQUATIONS, RECURSION
from manualgrad.follow.mathml import mathml
from manualgrad.follow.quantities import Followed
from manualgrad.follow.source_lines import cited_line
from manualgrad.follow.stations import BACKWARD, FORWARD, NETWORK_LINES, Station
from manualgrad.follow.training import BATCH_SIZE
from manualgrad.models import DocumentCNN
from manualgrad.nn import Conv2d


@dataclass(frozen=True)
class Contents:
    """Everything that the page shows.

    Attributes:
        label: the digit's class.
        eta: learning rate η of all steps.
        provenance: sentences about image and weights.
        states: the digit after the numbers of training steps that are the keys.
        costs: cost of each batch of the training, empty for weights from a file.
        panels: the mistakes.
        verdicts: words of ``compare`` about each mistake, by its name; may be empty.
    """

    label: int
    eta: float
    provenance: str
    states: Mapping[int, Followed]
    costs: Sequence[float]
    panels: Sequence[Panel]
    verdicts: Mapping[str, str]


def as_html(contents: Contents, model: DocumentCNN) -> str:
    """Return the page. Its content security policy forbids all loading, and all text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("manualgrad.follow", "page_files"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        label=contents.label,
        eta=contents.eta,
        provenance=contents.provenance,
        states=len(contents.states),
        trained=bool(contents.costs),
        batch_size=BATCH_SIZE,
        eq22=_formulas(22),
        eq23=_formulas(23),
        network_lines=[cited_line(*line) for line in NETWORK_LINES],
        forward=[_station_values(station) for station in FORWARD],
        backward=[_station_values(station) for station in BACKWARD],
        panels=[_panel_values(panel, contents.verdicts.get(panel.name, "")) for panel in contents.panels],
        data=Markup(as_script(_data(contents, model))),
    )


def _data(contents: Contents, model: DocumentCNN) -> dict[str, Any]:
    modules = model.layers_with_weights()
    return {
        "label": contents.label,
        "eta": contents.eta,
        "layers": len(modules),
        "convs": [l for l, module in enumerate(modules) if isinstance(module, Conv2d)],  # noqa: E741
        "subgradient": model.subgradient,
        "costs": [round(cost, 4) for cost in contents.costs],
        "states": [
            {
                "step": step,
                "cost": followed.cost,
                "cost_after": followed.cost_after_step,
                "q": encode_all(followed.quantities),
            }
            for step, followed in contents.states.items()
        ],
        "mistakes": {
            panel.name: {"right": encode_all(panel.effect.right), "wrong": encode_all(panel.effect.wrong)}
            for panel in contents.panels
        },
    }


def _station_values(station: Station) -> dict[str, Any]:
    recursion = None if station.recursion is None else _formula(RECURSION[station.recursion])
    return vars(station) | {
        "case": recursion,
        "text": cleandoc(station.text).split("\n\n"),
        "equations": [(number, _formulas(number)) for number in station.equations],
        "lines": [cited_line(*line) for line in station.lines],
    }


def _panel_values(panel: Panel, verdict: str) -> dict[str, Any]:
    return vars(panel) | {
        "right": _formulas(panel.equation),
        "wrong": _formula(panel.wrong) if panel.wrong else "",
        "quantities": [{"name": name, "caption": caption} for name, caption in panel.quantities.items()],
        "verdict": verdict,
    }


def _formulas(number: int) -> list[Markup]:
    return [_formula(tex) for tex in EQUATIONS[number]]


def _formula(tex: str) -> Markup:
    """One formula for each clause, so that a narrow display can show them below each other."""
    return Markup("".join(mathml(clause) for clause in tex.split(r"\qquad")))
