"""A network as functions of tensors on CUDA, computed by the launches of ``cuda_plan_builder.py``.

Nothing here reads a number from the device or remembers a tensor, so a caller's CUDA graph can capture every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from manualgrad._torch_compat import foreach_mul
from manualgrad.cuda import launch
from manualgrad.cuda.launch import Launcher
from manualgrad.cuda.tensor_checks import unsupported_tensors
from manualgrad.network.cuda_launches import CUDAProgram, Launch, Workspace
from manualgrad.network.cuda_plan_builder import CUDAPlanBuilder
from manualgrad.network.cuda_tiles import Tiles
from manualgrad.network.device import Unsupported
from manualgrad.network.layers import Conv, Flatten, NetworkSpec
from manualgrad.network.plan_builder import Region
from manualgrad.network.plan_interface import Intermediates, LossAndSteps, saved_tensor_error

FLOAT32 = (torch.float32,)


@dataclass(frozen=True)
class CUDAStep:
    """Launches that write the loss and the gradients of one batch to the tensors of ``result``.

    Attributes:
        values: the tensors and numbers that the launches read and write, by name.
    """

    program: CUDAProgram
    values: dict[str, Tensor | float]
    result: LossAndSteps

    def run(self, launcher: Launcher) -> None:
        """Launch the step by ``launcher``."""
        self.program.run(launcher, self.values)


class CUDAPlan:
    """Launches for one network and one batch size; see :class:`NetworkPlan`.

    No method returns None because of a number: kernels compute every product, so infinities and NaN spread as in the
    formulas. A label that is no class has loss and gradient NaN, since to raise would take a synchronisation.

    Args:
        tiles: those of every layer; by default the ones that were measured for the batch size.
    """

    def __init__(self, network: NetworkSpec, batch_size: int, tiles: Tiles | None = None) -> None:
        self.network, self.batch_size = network, batch_size
        builder = self.builder = CUDAPlanBuilder(network, batch_size, tiles)
        self.input_shape = torch.Size((batch_size, *network.image_shape))
        self.parameter_names = builder.parameter_names
        self.parameter_shapes = list(map(torch.Size, builder.parameter_shapes))
        saved, packed = builder.saved_buffers(), builder.packed_buffers()
        scratch, loss = builder.scratch_buffers(), builder.loss_buffers()
        self._saved, self._packed = Workspace(saved), Workspace(packed)
        self._scratch = Workspace(packed | scratch)
        self._workspace = Workspace(saved | packed | scratch | loss)
        first_grad = builder.first_grad_call()
        self._forward_program = CUDAProgram(_calls(builder.forward_regions()))
        self._backward_program = CUDAProgram(_calls(builder.backward_regions()))
        self._step_programs: dict[tuple[bool, bool], CUDAProgram] = {}
        self._first_grad_program = CUDAProgram([first_grad] if first_grad else [])

    def supports(self, x: Tensor, parameters: Sequence[Tensor]) -> bool:
        """Return True if the kernels can read ``x``, of any strides, and ``parameters``."""
        if x.shape != self.input_shape or [p.shape for p in parameters] != self.parameter_shapes:
            return False
        return not unsupported_tensors(x, *parameters, dtypes=FLOAT32) and all(p.is_contiguous() for p in parameters)

    def forward(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """z^{L−1}, (N, classes), and the workspace that :meth:`backward` needs besides x and the weights."""
        z = x.new_empty(self.batch_size, self.network.classes)
        saved = self._saved.allocate(x)
        values = self._parameters(parameters) | {"x": x.contiguous(), "z": z, "N": self.batch_size}
        values |= self._saved.buffers(saved) | self._packed.buffers(self._packed.allocate(x))
        self._forward_program.run(_launcher(), values)
        return z, saved

    def backward(self, g: Tensor, x: Tensor, saved: Tensor, weights: Sequence[Tensor]) -> list[Tensor] | None:
        """∂J/∂w and ∂J/∂b of each layer from ``g``, ∂J/∂z^{L−1}, (N, classes).

        Returns:
            The gradients in the order of the parameters; None if g has another dtype.

        Raises:
            ValueError: x, a weight or ``saved`` has another shape or dtype than in forward.
        """
        if g.dtype is not torch.float32:
            return None
        self._check_saved(x, saved, weights)
        parameters = [tensor for w in weights for tensor in (w, w)]  # backward reads no bias
        grads = self._new_grads(weights)
        values = self._parameters(parameters) | self._steps(grads)
        values |= {"x": x.contiguous(), "g": g.contiguous(), "N": self.batch_size}
        values |= self._saved.buffers(saved) | self._scratch.buffers(self._scratch.allocate(x))
        self._backward_program.run(_launcher(), values)
        return grads

    def _check_saved(self, x: Tensor, saved: Tensor, weights: Sequence[Tensor]) -> None:
        expected = [("the workspace", saved, self._saved.shape), ("x", x, self.input_shape)]
        shapes = self.parameter_shapes[::2]
        expected += [(f"weight {n}", w, s) for n, (w, s) in enumerate(zip(weights, shapes, strict=True))]
        for name, tensor, shape in expected:
            is_contiguous = tensor is x or tensor.is_contiguous()  # x may have any strides
            if tensor.shape != shape or tensor.dtype is not torch.float32 or not is_contiguous:
                contiguous = "" if tensor is x else "contiguous "
                raise ValueError(saved_tensor_error(tensor, name, shape, torch.float32, contiguous))

    def loss_and_grads(
        self, x: Tensor, labels: Tensor, parameters: Sequence[Tensor], factor: float, *, update: bool = False
    ) -> LossAndSteps | None:
        """The mean loss of ``labels``, (N,) int64, and ``factor`` times its gradient.

        Args:
            update: also add ``factor`` times the gradient to the parameters.

        Returns:
            None if there are no images, or if the labels are not contiguous int64 of shape (N,) on the device of x.
        """
        is_plain = not unsupported_tensors(labels, dtypes=(torch.int64,)) and labels.is_contiguous()
        if not self.batch_size or labels.shape != x.shape[:1] or not is_plain or labels.device != x.device:
            return None
        step = self.new_step(x, labels, parameters, float(factor), update=update)
        step.run(_launcher())
        return step.result

    def new_step(
        self, x: Tensor, labels: Tensor, parameters: Sequence[Tensor], factor: float | Tensor, *, update: bool
    ) -> CUDAStep:
        """The launches of :meth:`loss_and_grads` for these tensors; ``factor`` may lie in a tensor ()."""
        probabilities, loss = x.new_empty(self.batch_size, self.network.classes), x.new_empty(())
        workspace, steps = self._workspace.allocate(x), self._new_grads(parameters[::2])
        values = self._parameters(parameters) | self._steps(steps) | self._workspace.buffers(workspace)
        values |= {"x": x.contiguous(), "labels": labels, "factor": factor, "probs": probabilities, "loss": loss,
                   "N": self.batch_size}  # fmt: skip
        program = self._step_program(update, isinstance(factor, Tensor))
        return CUDAStep(program, values, LossAndSteps(probabilities, loss, steps, workspace))

    def _step_program(self, update: bool, factor_in_memory: bool) -> CUDAProgram:
        program = self._step_programs.get((update, factor_in_memory))
        if program is None:
            calls = self.builder.step_calls(UPDATE=update, FACTOR_IN_MEMORY=factor_in_memory)
            program = self._step_programs[update, factor_in_memory] = CUDAProgram(calls)
        return program

    def scale_grads(self, grads: list[Tensor], g: Tensor) -> list[Tensor] | None:
        """``grads`` times ``g``, (), in an engine's backward; None if g has another dtype."""
        return None if g.dtype is not torch.float32 else list(foreach_mul(grads, g))

    def intermediates(self, result: LossAndSteps) -> Intermediates:
        """Tensors between the layers in the workspace of ``result``."""
        buffers = self._workspace.buffers(result.workspace)
        self._first_grad_program.run(_launcher(), buffers | {"N": self.batch_size})
        inputs, pool_indices, grad_outputs = list[Tensor](), list[Tensor](), list[Tensor]()
        for layer, block, at in zip(self.network.layers, self.builder.blocks, self.builder.places, strict=True):
            shape = (self.batch_size, *block.out.shape)
            if is_channel_major := getattr(block, "is_channel_major", False):
                shape = shape[0], shape[3], *shape[1:3]
            if isinstance(layer, Flatten):
                inputs[-1] = inputs[-1].flatten(1)
                continue
            grad = self._workspace.buffer(result.workspace, at.grad_out.name, shape)
            out = self._workspace.buffer(result.workspace, at.out.name, shape)
            if isinstance(layer, Conv):
                index = self._workspace.buffer(result.workspace, at.own("pool_index").name, shape)
                pool_indices.append(index if is_channel_major else index.permute(0, 3, 1, 2))
                grad = grad if is_channel_major else grad.permute(0, 3, 1, 2)
            elif layer.subgradient is not None:
                out = out.clamp(min=0)  # eq. (9), of z
            grad_outputs.append(grad)
            inputs.append(out)
        inputs.pop()  # z^{L−1}, the input of no layer
        return Intermediates(inputs, pool_indices, grad_outputs)

    def _new_grads(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Uninitialized gradients of each weight and its bias."""
        return [grad for w in weights for grad in (torch.empty_like(w), w.new_empty(len(w)))]

    def _parameters(self, parameters: Sequence[Tensor]) -> dict[str, Tensor | float]:
        return dict(zip(self.parameter_names, parameters, strict=True))

    def _steps(self, steps: Sequence[Tensor]) -> dict[str, Tensor | float]:
        return {f"d{name}": step for name, step in zip(self.parameter_names, steps, strict=True)}


def _calls(regions: Sequence[Region]) -> list[Launch]:
    return [call for _, calls in regions for call in calls]


def _launcher() -> Launcher:
    launcher = launch.current_launcher()
    if launcher is None:  # switched off between forward and backward
        raise RuntimeError(f"manualgrad: a plan's backward needs the kernels of its forward, but {launch.why_none()}")
    return launcher


def get_plan(network: NetworkSpec, batch_size: int) -> CUDAPlan | str:
    """The plan, or the reason why there is none."""
    return launch.why_none() or _cached_plan(network, batch_size)


@lru_cache(64)
def _cached_plan(network: NetworkSpec, batch_size: int) -> CUDAPlan | str:
    try:
        return CUDAPlan(network, batch_size)
    except Unsupported as reason:
        return str(reason)
