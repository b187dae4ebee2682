"""Promise: a run on a CUDA device takes the CPU's steps, in graphs or without."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from manualgrad.training.device_steps import DeviceSteps
from manualgrad.training.nonfinite import NonFiniteError
from manualgrad.training.optimizers import GradientDescent
from tests.cuda.test_network import tiles  # noqa: F401
from tests.cuda.training_runs import MOMENTUM, cuda_device, finish, make_run, weights  # noqa: F401

STEP = ["gather_batch", "prepare", "conv_relu_pool_forward", "dense_forward", "softmax_cross_entropy_rows",
        "dense_grad_input", "backward", "reduce", "descend"]  # fmt: skip


@pytest.mark.parametrize(
    ("optimizer", "options", "steps"),
    [
        (MOMENTUM, {"epochs": 2, "shares": (1.0, 0.4), "average_last": 2}, [3, 1]),
        pytest.param(GradientDescent, {"num_images": 6}, [2], marks=pytest.mark.slow),
    ],
)
def test_the_steps_are_those_of_a_run_in_float64(cuda, launches, optimizer, options, steps):
    """A batch of two images at the end of the first epoch, images that the network predicts poorly in the second."""
    exact = make_run("cpu", optimizer, dtype=torch.float64, **options)
    expected = [step for call in finish(exact) for step in call]
    launches.clear()
    run = make_run(cuda, optimizer, **options)
    run.run_warmup_step()
    launches.clear()
    order = torch.randperm(options.get("num_images", 10), generator=torch.Generator().manual_seed(0))
    assert torch.equal(run.epoch_indices.cpu(), order), "the CPU's order"
    calls = finish(run)
    assert [len(call) for call in calls] == steps
    assert launches == STEP * sum(steps)
    for actual, reference in zip([step for call in calls for step in call], expected, strict=True):
        assert actual.loss == pytest.approx(reference.loss, rel=1e-5)
        assert replace(actual, loss=0) == replace(reference, loss=0)
    for actual, reference in zip(weights(run), weights(exact), strict=True):
        torch.testing.assert_close(actual.double(), reference, rtol=1e-5, atol=1e-6)  # rounding of 4 steps in float32
    assert run.num_correct == exact.num_correct
    assert run.optimizer.param_groups[0]["lr"] == exact.optimizer.param_groups[0]["lr"]
    assert run.scheduler.state_dict() == exact.scheduler.state_dict()
    torch.testing.assert_close(run.sampler.label_probs.cpu(), exact.sampler.label_probs, rtol=1e-4, atol=1e-6)
    for w, v in zip(run.model.parameters(), exact.model.parameters(), strict=True):
        momenta = [state.get("momentum_buffer") for state in (run.optimizer.state[w], exact.optimizer.state[v])]
        assert (momenta[0] is None) == (optimizer is GradientDescent)
        if momenta[0] is not None:
            torch.testing.assert_close(momenta[0].cpu().double(), momenta[1], rtol=1e-4, atol=1e-6)


def test_a_graph_of_steps_has_the_bits_of_single_steps_and_of_single_launches(cuda):
    results = []
    for at_most, cuda_graphs in ((100, True), (1, True), (100, False)):
        run = make_run(cuda, MOMENTUM, num_images=6, average_last=1, cuda_graphs=cuda_graphs)
        metrics = [step for call in finish(run, at_most) for step in call]
        results.append((metrics, weights(run)))
    (first, first_weights), *others = results
    for metrics, others_weights in others:
        assert metrics == first
        assert all(map(torch.equal, others_weights, first_weights))


def test_no_step_updates_after_a_cost_that_is_not_finite(cuda):
    run, one_step = (make_run(cuda, rate=1e30, num_images=8) for _ in range(2))
    assert len(run.train_steps(100)) == 1
    one_step.train_steps(1)
    assert all(map(torch.equal, weights(run), weights(one_step)))
    assert run.optimizer.param_groups[0]["lr"] == one_step.optimizer.param_groups[0]["lr"]
    with pytest.raises(NonFiniteError, match=r"at step 2 of epoch 1; the first non-finite tensor is the output of"):
        run.train_steps(100)
    assert all(map(torch.equal, weights(run), weights(one_step)))


def test_other_steps_are_taken_one_by_one_with_a_reason(cuda):
    def reason(**options) -> str:
        return str(make_run(cuda, **options).device_steps)

    assert reason(optimizer=torch.optim.Adam) == "the optimizer does not update every weight by gradient descent"
    assert "gradient descent" in reason(optimizer=partial(MOMENTUM, nesterov=True))


@pytest.mark.slow
def test_a_change_of_the_model_takes_effect_at_the_next_steps(cuda):
    run, calls = make_run(cuda), []
    assert isinstance(run.device_steps, DeviceSteps)
    handle = run.model.conv0.register_forward_hook(lambda *_: calls.append(1))
    assert len(run.train_steps(100)) == len(calls) == 1
    handle.remove()
    run.model.conv0.weight.requires_grad_(False)
    before = run.model.conv0.weight.clone()
    assert len(run.train_steps(100)) == 1
    assert torch.equal(run.model.conv0.weight, before)
    run.model.conv0.weight.requires_grad_(True)
    assert len(run.train_steps(100)) == 1, "one is left in the epoch"
