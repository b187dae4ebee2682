"""Compare hand-written gradients with PyTorch's own. The report goes to the terminal, and to HTML, Markdown and JSON.

python -m compare all --data-dir DIR           # gradients, training, speed, capabilities
python -m compare all --quick                  # a first look, in a minute or two
python -m compare gradients --cases my_file.py # your own Function: see docs/write-your-own.md
python -m compare gradients --model torchvision:resnet18  # a whole model: see docs/any-model.md

The exit code is 0 if everything matches, 1 if there is an unexplained difference, and 2 for wrong use or if a case
could not be compared.
"""

from __future__ import annotations

import sys

from compare.case import CaseError
from compare.options import parse_arguments
from compare.printable import printable
from compare.run_comparisons import UsageError, run_comparisons
from manualgrad import data, extras
from manualgrad.training.streams import usable_streams


def main(argv: list[str] | None = None, prog: str = "python -m compare") -> int:
    """Run the command line; return the exit code. ``prog`` is the name of the command in help, errors and report."""
    options = parse_arguments(argv, __doc__, prog)
    try:
        with usable_streams():
            if problem := extras.find_import_problem(extras.REPORT):
                raise UsageError(f"the report cannot be written: {problem}")
            return run_comparisons(options, [*prog.split(), *(sys.argv[1:] if argv is None else argv)])
    except (CaseError, UsageError, data.DataError) as error:
        print(f"compare: error: {printable(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        print("compare: error: the reader of stdout ended before the report was complete", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncompare: interrupted before the report was complete", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
