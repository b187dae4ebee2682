"""CUDA streams: inputs, forward and backward on different ones."""

from __future__ import annotations

import torch

from compare.capabilities.assertions import NotApplicable
from compare.capabilities.function_under_test import FunctionUnderTest, input_grads, random_grad_outputs

# Work that keeps a stream busy, so that an operation on another stream that does not wait for it comes too early.
DELAY_SIZE, DELAY_PRODUCTS = 2048, 32


def side_stream(tested: FunctionUnderTest, native: None) -> None:
    """Inputs are made on one busy CUDA stream, forward runs on a second, and backward is called from the default one;
    outputs and gradients must be those of a run on one stream."""
    if tested.device.type != "cuda":
        raise NotApplicable("streams are CUDA's")
    tested.baseline  # noqa: B018  computed here, on the current stream
    current = torch.cuda.current_stream(tested.device)
    producer, consumer = torch.cuda.Stream(tested.device), torch.cuda.Stream(tested.device)
    torch.cuda.synchronize(tested.device)
    with torch.cuda.stream(producer):
        _delay(tested.device)
        leaves = tested.leaves()
    consumer.wait_stream(producer)
    with torch.cuda.stream(consumer):
        _delay(tested.device)
        outputs = tested(*leaves)
    # Autograd runs backward on the consumer, which waits for the incoming gradients; the current stream waits for it.
    grads = input_grads(outputs, leaves, random_grad_outputs(outputs))
    current.wait_stream(consumer)
    tested.assert_equals_baseline(outputs, grads, "on another stream")
    torch.cuda.synchronize(tested.device)  # before the tensors of other streams are freed


def _delay(device: torch.device) -> None:
    busy = torch.zeros(DELAY_SIZE, DELAY_SIZE, device=device)
    for _ in range(DELAY_PRODUCTS):
        busy = busy @ busy
