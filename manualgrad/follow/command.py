"""The command: it trains a small network or loads weights, follows one digit, and writes the page."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from manualgrad import extras
from manualgrad.command_line import ArgumentParser
from manualgrad.data import DataError, Dataset, bundled_sample
from manualgrad.files import find_write_problem, write_atomic
from manualgrad.follow.break_it import Panel, make_panels
from manualgrad.follow.network import WeightsError, load_network, make_network
from manualgrad.follow.quantities import Followed, follow_digit
from manualgrad.follow.training import BATCH_SIZE, ETA, STEPS, normalize, train

PAGE = "follow.html"
IMAGE = 23  # a 9 that the network takes for an 8 after 100 steps, and of which it is not sure after 1,000
DESCRIPTION = """Follow one test digit of the bundled sample of MNIST through the 23 equations, forward and back, and
write one HTML page that shows every quantity as a picture. Without --weights, a small network is
trained from PyTorch's initial weights, and the page has a slider over its training. Needs the extra
"report"."""


def main(
    argv: list[str] | None = None,
    prog: str = "python -m manualgrad follow",
    verdicts: Callable[[], Mapping[str, str]] = dict,
) -> int:
    """Write the page and print its path. Return 0; 2 after one line about a wrong option or file; 130 after Ctrl-C.

    ``verdicts`` returns the words of ``compare`` about each mistake; the page is without them if it returns none.
    """
    parser = ArgumentParser(prog=prog, description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "--image", type=int, default=IMAGE, metavar="N", help="index of the test image (default: %(default)s)"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights.pt of `train`, in place of an untrained network"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/follow"),
        metavar="DIR",
        help=f"folder for {PAGE} (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the initial weights and of the training (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    problem = extras.find_import_problem(("jinja2",))
    if problem is not None:
        return _error(prog, f'the page needs the extra "report": {problem}')
    if not 0 <= options.seed < 2**63:
        return _error(prog, f"--seed {options.seed}: expected an integer from 0 to {2**63 - 1}")
    try:
        dataset = bundled_sample()
        if not 0 <= options.image < len(dataset.test):
            last = len(dataset.test) - 1
            return _error(
                prog, f"--image {options.image}: expected an index from 0 to {last:,}, of the bundled test images"
            )
        problem = _prepare_folder(options.out)
        if problem is not None:
            return _error(prog, f"--out {options.out} cannot be written to: {problem}")
        page = make_page(dataset, options.image, options.weights, options.seed, verdicts)
        write_atomic(options.out / PAGE, page.encode())
    except (DataError, WeightsError) as error:
        return _error(prog, error)
    except OSError as error:
        return _error(prog, f"--out {options.out} cannot be written to: {error.strerror}")
    except KeyboardInterrupt:
        print(f"{prog}: interrupted, no page was written", file=sys.stderr)
        return 130
    print(f"{options.out / PAGE}: open it in a browser")
    return 0


def make_page(
    dataset: Dataset,
    index: int,
    weights: Path | None,
    seed: int,
    verdicts: Callable[[], Mapping[str, str]],
    steps: tuple[int, ...] = STEPS,
) -> str:
    """Return the page for the test image ``index``.

    Args:
        weights: file of weights, or None to train a small network for ``steps``.

    Raises:
        WeightsError: ``weights`` cannot be used, or give NaN or infinity on this image.
    """
    from manualgrad.follow.page import Contents, as_html  # needs jinja2

    side, costs, label = dataset.test.images.shape[-1], list[float](), int(dataset.test.labels[index])
    if weights is None:
        model, origin = make_network(seed), f"an untrained network, small enough to show every number, seed {seed}"
    else:
        model, side = load_network(weights, side)
        origin = f"the weights of {weights}"
    if side < dataset.test.images.shape[-1]:
        dataset = dataset.center_crop(side)
    digit, threads = normalize(dataset.test.images[index : index + 1], dataset), torch.get_num_threads()
    torch.set_num_threads(1)  # layers of this size are faster in one thread than in threads that wait for each other
    try:
        panels = make_panels(model, dataset, index, ETA)
        states: dict[int, Followed] = {}
        if weights is not None:
            states[0] = follow_digit(model, digit, label, ETA)
        else:
            for step in train(model, dataset, steps, seed, costs):
                states[step] = follow_digit(model, digit, label, ETA)
        if not _are_finite(states, panels):
            raise WeightsError(f"{weights}: with these weights, a quantity of test image {index} is NaN or infinity")
        words = verdicts()
    finally:
        torch.set_num_threads(threads)
    pixels = "its pixels normalised to mean 0 and standard deviation 1"
    provenance = f"Test image {index} of the {dataset.name}, {pixels}, in {origin}."
    if weights is None:
        provenance += f" It is trained by gradient descent on batches of {BATCH_SIZE} digits, with η = {ETA}."
    return as_html(Contents(label, ETA, provenance, states, costs, panels, words), model)


def _are_finite(states: Mapping[int, Followed], panels: Sequence[Panel]) -> bool:
    costs = [cost for state in states.values() for cost in (state.cost, state.cost_after_step)]
    arrays = [q for state in states.values() for q in state.quantities.values()]
    arrays += [q for panel in panels for side in (panel.effect.right, panel.effect.wrong) for q in side.values()]
    return all(map(math.isfinite, costs)) and all(bool(array.isfinite().all()) for array in arrays)


def _prepare_folder(folder: Path) -> str | None:
    """Make the folder, and return the reason if the page cannot be written there, before any work is lost."""
    if (folder / PAGE).is_dir():
        return f"{PAGE} in it is a folder"
    return find_write_problem(folder)


def _error(prog: str, message: object) -> int:
    print(f"{prog}: error: {message}", file=sys.stderr)
    return 2
