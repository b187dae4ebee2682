"""The pieces of a training run: minibatches, step sizes, and what the network says of the test images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

from manualgrad.data import Dataset, Split
from manualgrad.functional import softmax_cross_entropy
from manualgrad.models import DocumentCNN
from manualgrad.training.distributed import ALONE, Processes


class GradientDescent(Optimizer):
    """The document's w − η ∂J/∂w, for all weights in one call: the bits of ``torch.optim.SGD``, in less time."""

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            torch._foreach_add_(weights, [w.grad for w in weights], alpha=-group["lr"])


# All that step from gradients alone; "sgd" is without momentum.
OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": GradientDescent} | {
    kind.__name__.lower(): kind
    for kind in (
        torch.optim.Adadelta,
        torch.optim.Adagrad,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adamax,
        torch.optim.ASGD,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.RMSprop,
        torch.optim.Rprop,
    )
}
SCHEDULES = ("constant", "cosine", "one-cycle", "linear")
GATHERED = 1024  # images at once: so few that they stay near, so many that a batch's share of the calls is small


def normalised(images: Tensor, dataset: Dataset, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images as numbers of mean 0 and standard deviation 1 over ``dataset``'s training images."""
    return images.to(dtype).sub_(255 * dataset.mean).div_(255 * dataset.std)


def minibatches(
    dataset: Dataset,
    order: Tensor,
    batch_size: int,
    *,
    dtype: torch.dtype = torch.float32,
    first: int = 0,
    share: Callable[[Tensor], Tensor] = lambda chosen: chosen,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The training images whose numbers ``order`` has: (normalised images, labels); the last batch may be smaller.

    The batches before number ``first`` are left out, and of each only the ``share`` is gathered, of the images'
    numbers. The images are gathered and normalised on the device where they lie, some batches at a time.
    """
    batches = [share(chosen) for chosen in order.split(batch_size)[first:]]
    at_once = max(1, GATHERED // batch_size)
    for some in (batches[n : n + at_once] for n in range(0, len(batches), at_once)):
        chosen, sizes = torch.cat(some).to(dataset.train.labels.device), [len(batch) for batch in some]
        images, labels = (of.index_select(0, chosen) for of in (dataset.train.images, dataset.train.labels))
        yield from zip(normalised(images, dataset, dtype).split(sizes), labels.split(sizes), strict=True)


def step_sizes(name: str, optimizer: Optimizer, steps: int) -> lr_scheduler.LRScheduler:
    """The schedule of η over ``steps`` steps: "constant", "cosine" down to 0, "one-cycle" up to η and down to 0, or
    "linear" up to η in the first fifth of the steps and down to 0.4 η, for a mean of the last weights.

    Fewer than 4 steps are all of size η.
    """
    if name == "constant" or steps < 4:  # of so few, one-cycle would make the last, or the only one, nothing
        return lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
    if name == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    if name == "one-cycle":
        peak = optimizer.param_groups[0]["lr"]
        return lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=steps, cycle_momentum=False)
    if name == "linear":
        rise = max(0.2, 2 / steps)  # at least one step
        rates = {"pct_start": rise, "div_factor": 25, "final_div_factor": 1 / (25 * 0.4)}  # from η/25, to 0.4 η
        return lr_scheduler.OneCycleLR(
            optimizer, optimizer.param_groups[0]["lr"], steps, anneal_strategy="linear", cycle_momentum=False, **rates
        )
    raise ValueError(f"no schedule is called {name!r}; there are {', '.join(SCHEDULES)}")


@dataclass(frozen=True)
class Verdict:
    """What the network says of a split: ``predicted`` (N,) class indices, ``cost`` the mean J, ``labels`` (N,)."""

    predicted: Tensor
    labels: Tensor
    cost: float

    @property
    def accuracy(self) -> float:
        """The share of images whose class is predicted right, in percent."""
        return 100 * (self.predicted == self.labels).double().mean().item()

    def confusion(self, classes: int) -> Tensor:
        """(classes, classes) counts: row the true class, column the predicted."""
        return torch.bincount(self.labels * classes + self.predicted, minlength=classes**2).view(classes, classes)


@torch.no_grad()
def examine(
    model: DocumentCNN, split: Split, dataset: Dataset, processes: Processes = ALONE, batch_size: int = 250
) -> Verdict:
    """The network's answer to every image of ``split``, in order; each process looks at its share of them."""
    dtype = next(model.parameters()).dtype
    predicted, cost = torch.zeros_like(split.labels), torch.zeros((), dtype=torch.float64, device=split.labels.device)
    for chosen in processes.share(torch.arange(len(split), device=split.labels.device)).split(batch_size):
        logits = model(normalised(split.images[chosen], dataset, dtype))
        predicted[chosen] = logits.argmax(1)
        cost += softmax_cross_entropy(logits, split.labels[chosen], reduction="sum")
    processes.add_up(predicted)
    return Verdict(predicted.cpu(), split.labels.cpu(), processes.add_up(cost).item() / len(split))
