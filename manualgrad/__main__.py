"""Commands of the package manualgrad: train a network, compare gradients with PyTorch's, check the installation.

python -m manualgrad train --help     # train the network of the formula sheet on MNIST
python -m manualgrad compare --help   # compare hand-written gradients, ours or your own, with PyTorch's
python -m manualgrad follow --help    # follow one digit through the equations, on a page with pictures
python -m manualgrad doctor           # versions, devices, kernels, cache and data of this installation; a self-test
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

import manualgrad
from manualgrad.command_line import ArgumentParser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit code, which is 2 for wrong use."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    prog = "manualgrad" if Path(sys.argv[0]).stem == "manualgrad" else "python -m manualgrad"
    parser = ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"manualgrad {manualgrad.__version__}")
    parser.add_argument("command", choices=COMMANDS, nargs="?", help="what to do; COMMAND --help lists its options")
    options = parser.parse_args(arguments[:1])
    if options.command is None:
        parser.print_help()
        return 0
    return COMMANDS[options.command](arguments[1:], f"{prog} {options.command}")


def train(argv: list[str], prog: str) -> int:
    """Run the training command; ``train.py`` in the repository runs the same."""
    from manualgrad.training import command

    return command.main(argv, prog)


def compare(argv: list[str], prog: str) -> int:
    """Run the command of the package ``compare``."""
    if not _import_compare():
        print(f"{prog}: error: there is no package compare beside {manualgrad.__file__}", file=sys.stderr)
        return 2
    import compare.__main__

    if any(argument.startswith("--c") for argument in argv):
        sys.path.append("")  # --cases may name a module of the current folder; installed modules come first
    exit_code: int = compare.__main__.main(argv, prog)
    return exit_code


def follow(argv: list[str], prog: str) -> int:
    """Write the page that follows one digit; ``compare``, where there is one, judges the mistakes on it."""
    from manualgrad.follow import command

    def verdicts() -> dict[str, str]:
        if not _import_compare():
            return {}
        from compare import usual_mistakes

        words: dict[str, str] = usual_mistakes.verdicts()
        return words

    return command.main(argv, prog, verdicts)


def doctor(argv: list[str], prog: str) -> int:
    """Describe the installation and run the self-test."""
    from manualgrad.doctor import command

    return command.main(argv, prog)


def _import_compare() -> bool:
    """Import the ``compare`` beside this package, whatever else on the path has its name; False without one."""
    if "compare" not in sys.modules:
        spec = PathFinder.find_spec("compare", [str(Path(manualgrad.__file__).parents[1])])
        if spec is None or spec.loader is None:
            return False
        sys.modules["compare"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["compare"])
    return True


COMMANDS = {"train": train, "compare": compare, "follow": follow, "doctor": doctor}

if __name__ == "__main__":
    raise SystemExit(main())
