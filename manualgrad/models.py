"""The network of section 4.2, equations (22) and (23)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from manualgrad import functional
from manualgrad.network import guards
from manualgrad.network.function import cost as cost_of_labels
from manualgrad.network.function import logits
from manualgrad.nn import Conv2d, ConvReLUMaxPool2d, Dense, Flatten, MaxPool2d, ReLU
from manualgrad.ops import checks
from manualgrad.ops.loss import softmax_cross_entropy


class DocumentCNN(nn.Module):
    """C, P∘R, C, F∘P∘R, D, R, D, and then S with J: L = 4 as in equation (22), in the order of (23).

    ``model(x)`` is z³, the logits; ``model.probabilities(x)`` is x⁴ = S(z³); ``model.cost(x, target)`` is J.

    Args:
        in_channels: channels of an image.
        image_size: its rows and columns, or one number for both.
        channels: output channels of each convolution; as many of them as there are numbers.
        kernel_size: of every convolution.
        hidden: outputs of each dense layer before the last.
        classes: outputs of the last.
        stride: of every convolution.
        subgradient: the derivative of ReLU at 0; the document has ½.
        fused: each P∘R∘C as one Function, which is faster and gives the same numbers; False: layer by layer.

    Shapes:
        x (B, in_channels, rows, columns) to z³ (B, classes); without B for one image.

    Raises:
        ValueError: an image too small for the layers; the message names the layer and the size that reaches it.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int | tuple[int, int] = 28,
        channels: Sequence[int] = (16, 32),
        kernel_size: int | tuple[int, int] = 5,
        hidden: Sequence[int] = (128,),
        classes: int = 10,
        *,
        stride: int | tuple[int, int] = 1,
        subgradient: float = 0.5,
        fused: bool = True,
        device: object = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, sizes in (("channels", channels), ("hidden", hidden)):
            if not isinstance(sizes, Sequence):
                raise ValueError(f"DocumentCNN: {name} must be a sequence of sizes, such as (16, 32), got {sizes!r}")
        if not channels:
            raise ValueError("DocumentCNN: channels must name at least one convolution")
        rows, columns = checks.pair("DocumentCNN", "image_size", image_size, least=1)
        made = {"device": device, "dtype": dtype}
        layers: list[tuple[str, nn.Module]] = []
        for n, out_channels in enumerate(channels):
            if fused:
                shape = (in_channels, out_channels, kernel_size, stride)
                stage = [ConvReLUMaxPool2d(*shape, subgradient=subgradient, **made)]  # P∘R∘C at once, eq. (23)
            else:
                stage = [
                    Conv2d(in_channels, out_channels, kernel_size, stride, **made),  # f^n = C, eq. (23)
                    ReLU(subgradient=subgradient),
                    MaxPool2d(),  # σ^n = P∘R, eq. (23)
                ]
            convolution = stage[0]
            (p, q), (s1, s2) = convolution.kernel_size, convolution.stride
            after = ((rows - p) // s1 + 1) // 2, ((columns - q) // s2 + 1) // 2
            if min(after) < 1:
                raise ValueError(
                    f"DocumentCNN: convolution {n} with kernel {p}x{q}, stride {s1}x{s2} and 2x2 pooling leaves "
                    f"nothing of the {rows}x{columns} that reach it; image_size is {image_size}"
                )
            rows, columns = after
            layers += zip((f"conv{n}", f"relu{n}", f"pool{n}"), stage, strict=False)
            in_channels = out_channels
        layers.append(("flatten", Flatten()))
        self.stages, self.subgradient, self.classes = len(channels), subgradient, classes
        self.flattened = (in_channels, rows, columns)  # K, I, J of the last pooling
        self.first_dense = f"dense{len(channels)}"
        features = rows * columns * in_channels
        for n, out_features in enumerate(hidden, start=len(channels)):
            layers += [
                (f"dense{n}", Dense(features, out_features, **made)),  # f^n = D, eq. (23)
                (f"relu{n}", ReLU(subgradient=subgradient)),
            ]
            features = out_features
        layers.append((f"dense{len(channels) + len(hidden)}", Dense(features, classes, **made)))
        for name, layer in layers:
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        found = guards.plan_of(self, x)
        if found is not None and guards.has_no_hooks(self) and guards.wants_all_parameter_grads_or_none(x, found[1]):
            return logits(x, *found)  # all of what follows, by one program
        for layer in filter(None, self._modules.values()):  # eq. (16), (17), (22), (23)
            x = layer(x)
        return x

    def weighted(self) -> list[nn.Module]:
        """The layers that have a weight, f^0 to f^{L−1}: convolutions, then dense layers."""
        return [layer for layer in self._modules.values() if isinstance(layer, (Conv2d, Dense))]

    def probabilities(self, x: Tensor) -> Tensor:
        """x^L = S(z^{L−1}): (B, classes)."""
        return functional.softmax(self(x))  # eq. (23)

    def cost(self, x: Tensor, target: Tensor) -> Tensor:
        """J of equation (13): one number, from class indices (B,) or probabilities (B, classes).

        To ask for J is faster than to ask for z^{L−1} and then for its cost: all derivatives are found on the way.
        """
        found = self._cost_at_once(x, target)
        return functional.softmax_cross_entropy(self(x), target) if found is None else found[0]

    def cost_and_probabilities(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`cost`, and x^L = S(z^{L−1}) on the way to it, (B, classes), without a derivative."""
        found = self._cost_at_once(x, target)
        if found is not None:
            return found
        logits = self(x)
        return functional.softmax_cross_entropy(logits, target), functional.softmax(logits.detach())  # eq. (23)

    def _cost_at_once(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
        """Both by one program, which finds the derivatives too; None where it cannot, or nobody wants them."""
        if not torch.is_grad_enabled() or not isinstance(target, Tensor) or not self._is_called_plainly():
            return None
        found = guards.plan_of(self, x)
        if found is None or not (guards.has_no_hooks(self) and guards.wants_all_parameter_grads_or_none(x, found[1])):
            return None
        return cost_of_labels(x, target, *found)

    def _is_called_plainly(self) -> bool:
        """Whether calling the model is ``forward`` above and no more, and the cost is what ``functional`` has."""
        own = self.__dict__
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return (
            type(self).forward is DocumentCNN.forward
            and type(self).__call__ is nn.Module.__call__
            and "forward" not in own
            and self._compiled_call_impl is None
            and not any(own[name] for name in hooks)
            and functional.softmax_cross_entropy is softmax_cross_entropy
        )
