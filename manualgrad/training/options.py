"""Options of the training command and its help text."""

from __future__ import annotations

import argparse
from pathlib import Path

from manualgrad import data
from manualgrad.command_line import ArgumentParser
from manualgrad.training.argument_types import bounded, path, percentage
from manualgrad.training.optimizers import OPTIMIZERS, SCHEDULES
from manualgrad.training.recipes import RECIPES, STANDARD, find_recipe
from manualgrad.training.run import ENGINES

DESCRIPTION = """\
Train the network of the formula sheet (docs/equations.md) on MNIST, by gradients that were derived by hand.

{examples}

Exit codes: 0 finished, 1 failure or missed --target-accuracy, 2 wrong options or files, 130 SIGINT, 143 SIGTERM,
129 SIGHUP (the terminal was closed).
"""
EXAMPLES = {
    "": "downloads MNIST; without a network, uses the bundled sample",
    "--data-dir DIR": "uses the files in DIR",
    "--optimizer adam --epochs 5": "",
    "--recipe fast": "about 99 % in the least time",
    "--checkpoint-every 200": "after a kill or an interruption, continue with --resume auto",
}


def describe(prog: str) -> str:
    """Return the description in the help text, whose examples run ``prog``: "train.py" or "python -m ..."."""
    is_script = prog.endswith(".py")
    command, for_torchrun = (f"python {prog}", prog) if is_script else (prog, "-m manualgrad train")
    examples = {f"{command} {arguments}".rstrip(): comment for arguments, comment in EXAMPLES.items()}
    examples[f"torchrun --nproc-per-node=2 {for_torchrun}"] = "two processes share each batch"
    width = max(map(len, examples))
    lines = (f"{example:{width}}  # {comment}" if comment else example for example, comment in examples.items())
    return DESCRIPTION.format(examples="\n".join(lines))


def parse_arguments(argv: list[str] | None = None, prog: str = "train.py") -> argparse.Namespace:
    """Parse the command line. For a mistake print two lines and exit with code 2."""
    parser = ArgumentParser(
        prog=prog, description=describe(prog), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--recipe", choices=RECIPES, default=STANDARD,
        help="named set of defaults for the options of the last group (default: %(default)s)")  # fmt: skip
    add("--dataset", choices=data.NAMES, default="mnist", help="default: %(default)s")
    add("--data-dir", type=path, metavar="DIR",
        help="folder with the data files; missing ones are downloaded to it (default: data, and without a network "
             "the bundled sample of MNIST)")  # fmt: skip
    add("--out", type=path, default=Path("runs/latest"), metavar="DIR",
        help="folder for results and checkpoints, OUT below (default: %(default)s)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA if available (default: auto)")
    add("--seed", type=bounded(int, 0, 2**63 - 1), default=0,
        help="seed of the initial weights and of the image order (default: %(default)s)")  # fmt: skip
    add("--limit", type=bounded(int, 1), metavar="N", help="use only the first N training images")
    add("--target-accuracy", type=percentage, metavar="%",
        help="exit with code 1 if the test accuracy is below this percentage")  # fmt: skip
    add("--checkpoint-every", type=bounded(int, 1), metavar="N",
        help="save a checkpoint in OUT/checkpoints every N steps, after the last step, and on a signal "
             "(default: on SIGINT, SIGTERM or SIGHUP only)")  # fmt: skip
    add("--resume", metavar="auto|FILE",
        help="auto: continue from the newest checkpoint in OUT, or start a run if OUT has none; "
             "FILE: continue from this checkpoint")  # fmt: skip
    add("--log-dir", type=path, metavar="DIR", help="write TensorBoard events to this folder")
    add("--no-cuda-graphs", dest="cuda_graphs", action="store_false",
        help="launch the kernels of steps on a CUDA device one by one: the same bits in more time")  # fmt: skip
    add("--no-allocator-tuning", dest="allocator_tuning", action="store_false",
        help="let the C library return freed memory to the system, which is its default")  # fmt: skip
    add = parser.add_argument_group("options whose defaults come from the recipe").add_argument
    add("--optimizer", choices=OPTIMIZERS,
        help="sgd is plain gradient descent; momentum is gradient descent with momentum 0.9")  # fmt: skip
    add("--channels", type=bounded(int, 1, 10**6), nargs="+", metavar="C", help="output channels of each convolution")
    add(
        "--hidden",
        type=bounded(int, 1, 10**6),
        nargs="*",
        metavar="N",
        help="output features of each hidden dense layer",
    )
    add("--engine", choices=ENGINES,
        help="computation of the gradients: autograd, torch's engine over our Functions; or document, the formula "
             "sheet's recursion of delta without autograd. Both give the same numbers")  # fmt: skip
    add("--epochs", type=bounded(int, 1, 10**6), metavar="N", help="number of epochs")
    add("--shares", type=bounded(float, 0.001, 1), nargs="+", metavar="S",
        help="fraction of the images used in each epoch, such as 1 0.5; the last value repeats. An epoch uses "
             "unseen images first, then those whose label had the lowest probability when last used")  # fmt: skip
    add("--average", type=bounded(float, 0, 1), metavar="S",
        help="fraction of the steps, counted from the end, over which the weights are averaged; "
             "the average is the result (0: no averaging)")  # fmt: skip
    add("--crop", type=bounded(int, 1), metavar="N", help="use only the N x N pixels in the middle of each image")
    add("--batch-size", type=bounded(int, 1, 10**9), metavar="N", help="images in a batch, over all processes")
    add("--schedule", choices=SCHEDULES, help="schedule of the learning rate")
    add("--learning-rate", type=bounded(float, 0, 1e30), metavar="LR",
        help="peak learning rate (default: the recipe's for its optimizer, torch's for others)")  # fmt: skip
    chosen = parser.parse_args(argv)
    parser.set_defaults(**find_recipe(chosen.recipe, chosen.device).option_defaults())
    return parser.parse_args(argv)
