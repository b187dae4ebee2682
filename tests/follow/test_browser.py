"""Promise: in a browser the page raises no error, and hovering, tapping, keys and the slider do what the page says.

The browser is run without a client library: a script in a copy of the page acts as the reader, and writes what it
sees into the page, which Chromium prints.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

from tests.follow.conftest import STEPS, Page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")

COLLECT_ERRORS = """<script>
const problems = [];
window.addEventListener("error", event => problems.push(event.message));
document.addEventListener("securitypolicyviolation", event => problems.push(event.violatedDirective));
console.error = console.warn = (...words) => problems.push(words.join(" "));
</script>"""

READER = """<pre id="observations"></pre><script>
const observations = {steps: [], problems,
  width: [document.documentElement.scrollWidth, document.documentElement.clientWidth]};

function plate(section, array) { return document.querySelector(`#${section} [data-array="${array}"] .plate`); }

function point(section, array, tile, row, column, type) {
  const picture = pictures.find(p => p.figure === plate(section, array).closest("figure"));
  const [top, left] = picture.corner(tile), box = picture.plate.getBoundingClientRect();
  const at = {clientX: box.left + (left + column + 0.5) / picture.cellsWide * box.width,
              clientY: box.top + (top + row + 0.5) / picture.cellsHigh * box.height};
  picture.plate.dispatchEvent(type === "click" ? new MouseEvent("click", at)
    : new PointerEvent("pointermove", {...at, pointerType: type}));
  report(`${type} ${section}/${array}`, section);
}

function report(action, section) {
  const lens = document.querySelector(`#${section} .lens`), marks = {};
  for (const figure of document.querySelectorAll(`#${section} figure`))
    marks[figure.dataset.array] = [...figure.querySelectorAll(".marks rect")].map(
      r => [r.getAttribute("class"), ...["x", "y", "width", "height"].map(a => +r.getAttribute(a))]);
  observations.steps.push({action, ...lens.dataset, text: lens.innerText, marks});
}

for (const station of document.querySelectorAll("section.station"))
  for (const figure of station.querySelectorAll("figure")) {
    const l = layout(get(figure.dataset.array).shape);
    point(station.id, figure.dataset.array, l.tiles - 1, l.height >> 1, l.width >> 1, "mouse");
  }
point("z0", "z0", 0, 3, 7, "mouse");
point("z0", "z0", 0, 9, 9, "touch");
point("z0", "z0", 0, 9, 9, "click");
for (const key of ["ArrowRight", "ArrowDown", "Enter"]) {
  plate("z0", "z0").dispatchEvent(new KeyboardEvent("keydown", {key}));
  report(key, "z0");
}
point("delta0", "dx1", 1, 0, 0, "mouse");
point("delta0", "spread0", 2, 5, 6, "mouse");
const slider_ = document.getElementById("steps");
slider_.value = slider_.max;
slider_.dispatchEvent(new Event("input"));
report("slider", "z0");
const now = [...document.querySelectorAll("[data-now]")].map(e => [e.dataset.now, e.textContent]);
observations.now = Object.fromEntries(now);
observations.current = [...document.querySelectorAll("[aria-current]")].map(a => a.hash);
document.getElementById("observations").textContent = JSON.stringify(observations);
</script>"""


@pytest.fixture(scope="module")
def observations(page: Page, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything that READER saw."""
    folder = tmp_path_factory.mktemp("browser")
    html = page.html.replace("<head>", f"<head>{COLLECT_ERRORS}", 1).replace("</body>", f"{READER}</body>", 1)
    (folder / "page.html").write_text(html, encoding="utf-8")
    assert BROWSER is not None
    result = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000",
         f"--user-data-dir={folder / 'profile'}", "--dump-dom", (folder / "page.html").as_uri()],
        capture_output=True, text=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    text = re.search(r'<pre id="observations">(.+?)</pre>', result.stdout, re.DOTALL)
    assert text is not None, result.stderr
    content = text[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return json.loads(content)


def step(observations: dict[str, Any], action: str) -> dict[str, Any]:
    return [step for step in observations["steps"] if step["action"] == action][-1]


def test_there_is_no_error_and_nothing_is_wider_than_the_window(observations):
    assert observations["problems"] == []
    assert observations["width"][0] == observations["width"][1]
    assert observations["current"] == ["#x0"]


def test_every_number_that_is_worked_out_is_the_number_in_the_picture(page: Page, observations):
    """The page's script adds up the products in float64; backprop's float32 sums of 576 products differ little."""
    arrays, last = page.quantities(0), page.quantities(len(STEPS) - 1)
    num_sums = 0
    for at in observations["steps"]:
        if at["name"].startswith("maxima"):
            continue
        array = (last if at["action"] == "slider" else arrays)[at["name"]].ravel()
        assert float(at["value"]) == pytest.approx(float(array[int(at["index"])]), abs=0)
        assert at["text"].strip()
        if at["sum"]:
            num_sums += 1
            limit = 1e-5 * max(np.abs(array).max(), 1e-3)
            assert abs(float(at["sum"]) - float(at["value"])) < limit, at["action"]
    assert num_sums > 30


def test_hover_shows_the_receptive_field_and_the_weights(page: Page, observations):
    at = step(observations, "mouse z0/z0")
    assert at["index"] == str((3 * 24 + 7) * 4)
    assert at["marks"]["x0"] == [["source", 7, 3, 5, 5]]
    assert at["marks"]["w0"] == [["source", 0, 0, 5, 5]]
    assert at["marks"]["z0"] == [["target", 7, 3, 1, 1]]
    assert "the 25 products add up to" in at["text"]
    q = page.quantities(0)
    rotated = q["w0"][::-1, ::-1, 0, 0]
    window = q["x0"][3:8, 7:12, 0]
    assert float(at["sum"]) == pytest.approx(float((window.astype(float) * rotated).sum() + q["b0"][0]), rel=1e-12)


def test_a_number_on_the_way_back_shows_where_it_came_from(page: Page, observations):
    at, q = step(observations, "mouse delta0/dx1"), page.quantities(0)
    assert at["index"] == "1"
    assert [mark[3:] for mark in at["marks"]["delta1"]] == [[1, 1]] * 8  # one position of each channel saw the corner
    assert len(at["marks"]["w1"]) == 8
    expected = (q["delta1"][0, 0].astype(float) * q["w1"][4, 4, 1]).sum()
    assert float(at["sum"]) == pytest.approx(float(expected), rel=1e-9, abs=1e-15)
    at = step(observations, "mouse delta0/spread0")
    assert at["marks"]["dx1"] == [["source", *at["marks"]["dx1"][0][1:3], 1, 1]]
    place = divmod(int(q["argmax0"][2, 3, 2]), 2)
    assert float(at["value"]) == (q["dx1"][2, 3, 2] if place == (1, 0) else 0)


def test_a_finger_scrolls_and_taps_and_keys_move(observations):
    assert step(observations, "touch z0/z0")["index"] == str((3 * 24 + 7) * 4)
    assert step(observations, "click z0/z0")["index"] == str((9 * 24 + 9) * 4)
    assert step(observations, "ArrowRight")["index"] == str((9 * 24 + 10) * 4)
    assert step(observations, "ArrowDown")["index"] == str((10 * 24 + 10) * 4)
    assert step(observations, "Enter")["index"] == str((10 * 24 + 10) * 4)


def test_the_slider_shows_the_digit_after_more_steps(page: Page, observations):
    assert observations["now"]["step"] == str(STEPS[-1])
    cost = page.data["states"][-1]["cost"]
    assert float(observations["now"]["cost"]) == pytest.approx(cost, rel=0.005)  # it is rounded to three digits
    assert float(step(observations, "slider")["value"]) != float(step(observations, "Enter")["value"])
