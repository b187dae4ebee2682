"""Train with several seeds, and print each test accuracy, their mean, and the seconds of training.

The first lines say what the seconds include and what they do not.

python scripts/seeds.py 5 --data-dir DIR        # seeds 0 to 4; the other arguments are passed to train.py
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from manualgrad.training.command import CLOCK_NOTE  # noqa: E402

TRAIN = ROOT / "train.py"


def main() -> int:
    if len(sys.argv) < 2 or not sys.argv[1].isdigit() or sys.argv[1] == "0":
        print(__doc__, file=sys.stderr)
        return 2
    print(CLOCK_NOTE, flush=True)
    accuracies, seconds = [], []
    for seed in range(int(sys.argv[1])):
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, str(TRAIN), *sys.argv[2:], "--seed", str(seed), "--out", out]
            code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
            if code not in (0, 1):  # exit code 1 may mean a missed --target-accuracy, and then there are metrics
                return code
            metrics = json.loads((Path(out) / "metrics.json").read_text())
        accuracies.append(metrics["test_accuracy"])
        seconds.append(metrics["epochs"][-1]["seconds"])
        report = f"seed {seed}: {accuracies[-1]:.2f} % on {metrics['dataset']}, {seconds[-1]:.2f} s of training"
        print(report, flush=True)
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    print(f"mean {statistics.mean(accuracies):.3f} %, standard deviation {spread:.3f}, "
          f"median {statistics.median(seconds):.2f} s of training on {metrics['threads']} threads")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
