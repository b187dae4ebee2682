"""Trains the document's network on MNIST, by gradients that were derived by hand.

python train.py                              # downloads MNIST, or uses the bundled sample
python train.py --data-dir DIR               # files in torchvision's layout under DIR
python train.py --optimizer adam --epochs 5
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA repeats its sums in one order only with this

import torch
from torch import Tensor
from tqdm import tqdm

from manualgrad import DocumentCNN, backprop, data, pictures, softmax_cross_entropy
from manualgrad.training import OPTIMIZERS, SCHEDULES, Verdict, examine, minibatches, normalised, step_sizes

RESULTS = ("weights.pt", "metrics.json", "curves.png", "confusion.png", "kernels.png", "mistakes.png")


def main(argv: list[str] | None = None) -> int:
    try:
        return train(arguments(argv))
    except KeyboardInterrupt:
        print("\ntrain.py: interrupted before its results were complete", file=sys.stderr)
        return 130


def train(options: argparse.Namespace) -> int:
    """From data to results; the exit code: 1 for a missed target or a cost that is no longer finite, else 0."""
    device = pick_device(options.device)
    out = make_folder(options.out)
    dataset = load(options, device)
    print(f"data    {dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} test images,")
    print(f"        {dataset.source}")

    torch.manual_seed(options.seed)
    order = torch.Generator().manual_seed(options.seed)
    rows_columns = tuple(dataset.train.images.shape[-2:])
    model = DocumentCNN(image_size=rows_columns, classes=len(dataset.classes)).to(device)
    optimizer = make_optimizer(options, model)
    steps_per_epoch = -(-len(dataset.train) // options.batch_size)
    schedule = step_sizes(options.schedule, optimizer, options.epochs * steps_per_epoch)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"model   DocumentCNN, {parameters:,} parameters, on {device} with {torch.get_num_threads()} threads")
    print(f"steps   {options.epochs} epochs of {steps_per_epoch:,}, batch {options.batch_size}, {options.optimizer}, "
          f"{options.schedule} schedule, learning rate {optimizer_rate(options, optimizer)}")  # fmt: skip

    losses: list[float] = []
    epochs: list[dict] = []
    seconds = 0.0
    for epoch in range(1, options.epochs + 1):
        start = time.perf_counter()
        epoch_losses, right = train_epoch(model, optimizer, schedule, dataset, options, order, epoch)
        seconds += time.perf_counter() - start
        losses += epoch_losses
        if not all(map(math.isfinite, epoch_losses)):
            step = next(n for n, loss in enumerate(epoch_losses, 1) if not math.isfinite(loss))
            print(f"train.py: the cost is {epoch_losses[step - 1]} at step {step} of epoch {epoch}: the steps are "
                  f"too large, try a smaller --learning-rate; no results were written", file=sys.stderr)  # fmt: skip
            return 1
        verdict = examine(model, dataset.test, dataset)
        mean = sum(epoch_losses) / len(epoch_losses)
        epochs.append({"epoch": epoch, "cost": mean, "accuracy": 100 * right / len(dataset.train),
                       "test_cost": verdict.cost, "test_accuracy": verdict.accuracy, "seconds": seconds})  # fmt: skip
        print(f"epoch {epoch}: cost {mean:.4f}, test cost {verdict.cost:.4f}, "
              f"test accuracy {verdict.accuracy:.2f} %, {seconds:.1f} s of training")  # fmt: skip

    write_results(out, options, device, dataset, model, losses, epochs, verdict)
    wrong = int((verdict.predicted != verdict.labels).sum())
    print(f"\n{verdict.accuracy:.2f} % of the {len(dataset.test):,} test images are right ({wrong} wrong), "
          f"after {seconds:.1f} s of training on {dataset.name}.\n"
          f"Weights, metrics.json and pictures are in {out}")  # fmt: skip
    if options.target_accuracy is not None and verdict.accuracy < options.target_accuracy:
        print(f"the target of {options.target_accuracy} % is missed", file=sys.stderr)
        return 1
    return 0


def train_epoch(model, optimizer, schedule, dataset, options, order, epoch) -> tuple[list[float], int]:
    """One pass over the training images: the cost of every step, and how many were right when they were seen."""
    costs, right, seen = [], torch.zeros((), dtype=torch.long, device=dataset.train.labels.device), 0
    with tqdm(total=len(dataset.train), unit=" images", desc=f"epoch {epoch}", leave=False, disable=None) as bar:
        for step, (images, labels) in enumerate(minibatches(dataset.train, options.batch_size, order)):
            cost, answers = find_gradients(model, normalised(images, dataset), labels, options.engine)
            optimizer.step()
            schedule.step()
            costs.append(cost)
            right += (answers.argmax(1) == labels).sum()
            seen += len(labels)
            bar.update(len(labels))
            if step % 50 == 0 and not bar.disable:
                bar.set_postfix(cost=f"{cost.item():.4f}", accuracy=f"{100 * right.item() / seen:.2f} %")
    return torch.stack(costs).tolist(), int(right)


def find_gradients(model: DocumentCNN, x: Tensor, labels: Tensor, engine: str) -> tuple[Tensor, Tensor]:
    """Leaves ∂J/∂w in every parameter's ``grad``; returns J, and the network's answers (B, classes).

    "autograd" chains our Functions; "document" runs the recursion of δ, section 4, whose steps for η = −1 are the
    gradients. The numbers are the same.
    """
    if engine == "document":
        steps = backprop.backpropagate(model, x, labels, eta=-1)
        for layer, weight, bias in zip(model.weighted(), steps.weights, steps.biases, strict=True):
            layer.weight.grad, layer.bias.grad = weight, bias
        return steps.cost, steps.probabilities
    model.zero_grad()
    logits = model(x)
    cost = softmax_cross_entropy(logits, labels)
    cost.backward()
    return cost.detach(), logits.detach()


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse answers a mistake with one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", choices=data.NAMES, default="mnist")
    add("--data-dir", default="data", metavar="DIR", help="where the files are, or are downloaded to (default: data)")
    add("--out", type=Path, default=Path("runs/latest"), metavar="DIR", help="for the results (default: runs/latest)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--engine", choices=("autograd", "document"), default="autograd",
        help="what chains the derivatives: torch's engine, or the document's recursion of δ")  # fmt: skip
    add("--epochs", type=at_least(int, 1), default=3)
    add("--batch-size", type=at_least(int, 1, most=10**9), default=64)
    add("--optimizer", choices=OPTIMIZERS, default="sgd", help="sgd, the default, is plain gradient descent")
    add("--learning-rate", type=at_least(float, 0), metavar="η",
        help="the highest of the schedule (default: 0.25 for sgd, torch's own default for others)")  # fmt: skip
    add("--schedule", choices=SCHEDULES, default="one-cycle")
    add("--seed", type=at_least(int, 0, most=2**63 - 1), default=0, help="the same seed gives the same weights")
    add("--limit", type=at_least(int, 1), metavar="N", help="use the first N training images only")
    add("--target-accuracy", type=percent, metavar="%", help="exit with 1 unless the test accuracy reaches it")
    return parser.parse_args(argv)


def at_least(kind: type, least: float, most: float = math.inf):
    """An argparse type: a number of ``kind`` that is finite, not below ``least`` and not above ``most``."""
    wanted = f"a {'whole ' if kind is int else ''}number, at least {least}"
    if not math.isinf(most):
        wanted += f", at most {most}"

    def number(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not (least <= value <= most and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return value

    return number


def percent(text: str) -> float:
    """An argparse type: a percentage."""
    value = at_least(float, 0)(text)
    if not 1 < value <= 100:
        raise argparse.ArgumentTypeError(f"expected percent, such as 99.2, got {text!r}")
    return value


def fail(message: object) -> None:
    """Says what is wrong with the command, and ends with exit code 2."""
    print(f"train.py: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def pick_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: PyTorch finds no CUDA device here; use --device cpu, or auto")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True)
    return device


def make_folder(path: Path) -> Path:
    """Made, and written to, before any work is done that could be lost."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        fail(f"--out {path} cannot be written to: {error.strerror}")
    for name in RESULTS:
        if (path / name).is_dir():
            fail(f"--out {path} holds a folder {name}, where a file is to be written")
    return path


def load(options: argparse.Namespace, device: torch.device) -> data.Dataset:
    try:
        dataset = data.load(options.dataset, options.data_dir)
    except data.DataError as error:
        fail(error)
    if options.limit:
        dataset = dataset.limited(options.limit)
    return dataset.to(device)


def make_optimizer(options: argparse.Namespace, model: DocumentCNN) -> torch.optim.Optimizer:
    rate = options.learning_rate
    if rate is None and options.optimizer == "sgd":
        rate = 0.25
    return OPTIMIZERS[options.optimizer](model.parameters(), **({} if rate is None else {"lr": rate}))


def optimizer_rate(options: argparse.Namespace, optimizer: torch.optim.Optimizer) -> float:
    return options.learning_rate or optimizer.defaults["lr"]


def write_results(out, options, device, dataset, model, losses, epochs, verdict: Verdict) -> None:
    """weights.pt, metrics.json, and four pictures, each of which names the data that it was made from."""
    torch.save(model.state_dict(), out / "weights.pt")
    metrics = {
        "dataset": dataset.name,
        "source": dataset.source,
        "training_images": len(dataset.train),
        "test_images": len(dataset.test),
        "test_accuracy": verdict.accuracy,
        "epochs": epochs,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "command": sys.argv,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "confusion": verdict.confusion(len(dataset.classes)).tolist(),
        "losses": losses,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False))
    title = f"{dataset.name}, seed {options.seed}"
    pictures.save(pictures.curves(losses, [e["test_accuracy"] for e in epochs], title), out / "curves.png")
    pictures.save(pictures.confusion(verdict, dataset.classes, title), out / "confusion.png")
    pictures.save(pictures.kernels(model.conv0.weight, f"{title}: the first convolution"), out / "kernels.png")
    pictures.save(pictures.mistakes(verdict, dataset, title), out / "mistakes.png")


if __name__ == "__main__":
    raise SystemExit(main())
