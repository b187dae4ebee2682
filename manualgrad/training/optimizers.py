"""Optimizers and learning-rate schedules, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

from manualgrad._torch_compat import foreach_add_, schedule_state, uncompiled


class GradientDescent(Optimizer):
    """Plain gradient descent w ← w − η ∂J/∂w: the same bits as ``torch.optim.SGD`` in less time.

    All weights of a parameter group are updated by one call. ``torch.optim`` imports PyTorch's compiler for the
    methods below, which takes longer than a short run; this class does not.
    """

    add_param_group = uncompiled(Optimizer.add_param_group)
    zero_grad = uncompiled(Optimizer.zero_grad)
    state_dict = uncompiled(Optimizer.state_dict)
    load_state_dict = uncompiled(Optimizer.load_state_dict)

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: no schedule or hook here passes one
        """Subtract the learning rate times the gradient from each weight that has one."""
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if weights:
                foreach_add_(weights, [w.grad for w in weights], alpha=-group["lr"])


# "sgd" has no momentum. The others are the optimizers of torch.optim whose step needs no more than gradients.
_PLAIN: dict[str, Callable[..., Optimizer]] = {
    "sgd": GradientDescent,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
}
OPTIMIZERS = _PLAIN | {
    optimizer.__name__.lower(): optimizer
    for optimizer in (
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


def make_lr_scheduler(name: str, optimizer: Optimizer, num_steps: int) -> lr_scheduler.LRScheduler:
    """Return a learning-rate scheduler that is stepped after each of ``num_steps`` training steps.

    The optimizer's learning rate η is the peak. The names are:

    - "constant": η throughout;
    - "cosine": from η down to 0;
    - "one-cycle": from η/25 up to η and down to 0;
    - "linear": from η/25 up to η in the first fifth of the steps, then down to 0.4 η. It suits averaged weights.

    With fewer than 4 steps every schedule is constant.

    Raises:
        ValueError: unknown name.
    """
    if name == "constant" or num_steps < 4:  # with so few steps, one-cycle would end with, or only have, a rate of 0
        return lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
    if name == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps)
    peak = optimizer.param_groups[0]["lr"]
    if name == "one-cycle":
        return lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=num_steps, cycle_momentum=False)
    if name == "linear":
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=peak,
            total_steps=num_steps,
            anneal_strategy="linear",
            cycle_momentum=False,
            pct_start=max(0.2, 2 / num_steps),  # the rise takes at least one step
            div_factor=25,  # from η/25
            final_div_factor=1 / (25 * 0.4),  # to 0.4 η
        )
    raise ValueError(f"unknown schedule {name!r}: expected one of {', '.join(SCHEDULES)}")


def learning_rates(
    optimizer: Optimizer, scheduler: lr_scheduler.LRScheduler, step: int, num_steps: int
) -> list[float]:
    """Learning rates of ``num_steps`` steps and of the one after them, (num_steps + 1,).

    Optimizer and scheduler are those after ``step`` steps, and stay so. The optimizer has one group."""
    if step == 0:  # a scheduler warns unless optimizer.step() ran before it; without gradients that changes nothing
        optimizer.zero_grad()
        optimizer.step()
    rates = [float(optimizer.param_groups[0]["lr"])]
    for _ in range(num_steps):
        scheduler.step()
        rates.append(float(optimizer.param_groups[0]["lr"]))
    set_schedule(optimizer, scheduler, step, rates[0])
    return rates


def set_schedule(optimizer: Optimizer, scheduler: lr_scheduler.LRScheduler, step: int, learning_rate: float) -> None:
    """Set the optimizer's one group and the scheduler to what they are after ``step`` steps."""
    optimizer.param_groups[0]["lr"] = learning_rate
    scheduler.load_state_dict(schedule_state(step, [learning_rate]))
