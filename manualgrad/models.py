"""The network of section 4.2 of the formula sheet (docs/equations.md), equations (22) and (23)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from manualgrad import functional
from manualgrad._torch_compat import child_modules, has_hooks, is_compiled_in_place
from manualgrad.network import guards
from manualgrad.network.function import logits_apply, loss_apply
from manualgrad.nn import Conv2d, ConvReLUMaxPool2d, Dense, Device, Flatten, MaxPool2d, ReLU
from manualgrad.ops import checks
from manualgrad.ops.differentiable import is_grad_recorded
from manualgrad.ops.loss import softmax_cross_entropy


class DocumentCNN(nn.Module):
    """C, P∘R, C, F∘P∘R, D, R, D, and then S with J: L = 4 as in equation (22), in the order of (23).

    ``model(x)`` is z³, the logits; ``model.probabilities(x)`` is x⁴ = S(z³); ``model.cost(x, target)`` is J.

    Args:
        in_channels: channels of an image.
        image_size: height and width of an image, or one number for both.
        channels: output channels of each convolution; there are as many convolutions as numbers, at least one.
        kernel_size: kernel height and width of every convolution, or one number for both.
        hidden: output features of each dense layer except the last.
        classes: output features of the last dense layer.
        stride: stride of every convolution.
        subgradient: derivative of ReLU at 0; ½ in equation (10).
        fused: True makes each P∘R∘C one Function, which is faster and gives the same numbers; False makes it three.

    Shapes:
        x (N, in_channels, H, W) to z³ (N, classes); without N for one image.

    Raises:
        ValueError: an image that is too small for the layers; the message names the convolution and its input size.
    """

    fused = True

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
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, sizes in (("channels", channels), ("hidden", hidden)):
            if not isinstance(sizes, Sequence):
                raise ValueError(f"DocumentCNN: {name} must be a sequence of sizes, such as (16, 32), got {sizes!r}")
        if not channels:
            raise ValueError(f"DocumentCNN: channels must have at least one convolution, got {channels!r}")
        height, width = checks.as_pair("DocumentCNN", "image_size", image_size, minimum=1)
        layers: list[tuple[str, nn.Module]] = []
        for n, out_channels in enumerate(channels):
            shape = (in_channels, out_channels, kernel_size, stride)
            conv: Conv2d
            if fused:
                conv = ConvReLUMaxPool2d(*shape, subgradient=subgradient, device=device, dtype=dtype)
                block: list[nn.Module] = [conv]  # P∘R∘C as one Function, eq. (23)
            else:
                conv = Conv2d(*shape, device=device, dtype=dtype)  # f^n = C, eq. (23)
                block = [conv, ReLU(subgradient=subgradient), MaxPool2d()]  # σ^n = P∘R, eq. (23)
            layers += zip((f"conv{n}", f"relu{n}", f"pool{n}"), block, strict=False)
            out_height, out_width = _pooled_size(conv, height, width)
            if min(out_height, out_width) < 1:
                kernel, stride_ = "x".join(map(str, conv.kernel_size)), "x".join(map(str, conv.stride))
                raise ValueError(
                    f"DocumentCNN: image_size={image_size} is too small: the input of convolution {n} is "
                    f"{height}x{width}, and kernel {kernel}, stride {stride_} and 2x2 pooling leave no output"
                )
            height, width, in_channels = out_height, out_width, out_channels
        layers.append(("flatten", Flatten()))
        self.num_conv_blocks, self.subgradient, self.classes = len(channels), subgradient, classes
        self.fused = fused
        self.flatten_input_shape = (in_channels, height, width)  # C, H, W of the last pooling
        self.first_dense = f"dense{len(channels)}"
        features = in_channels * height * width
        for n, out_features in enumerate(hidden, start=len(channels)):
            dense = Dense(features, out_features, device=device, dtype=dtype)  # f^n = D, eq. (23)
            layers += [(f"dense{n}", dense), (f"relu{n}", ReLU(subgradient=subgradient))]  # σ^n = R, eq. (23)
            features = out_features
        last_dense = Dense(features, classes, device=device, dtype=dtype)  # f^{L−1} = D, eq. (23)
        layers.append((f"dense{len(channels) + len(hidden)}", last_dense))
        for name, layer in layers:
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """z^{L−1}, the logits: (N, classes)."""
        usable = guards.find_usable_plan(self, x)
        if not isinstance(usable, str):
            return logits_apply(x, *usable)  # the layers below as one plan
        for layer in filter(None, child_modules(self).values()):  # eq. (16), (17), (22), (23)
            x = layer(x)
        return x

    def layers_with_weights(self) -> list[Conv2d | Dense]:
        """The layers f^0 to f^{L−1}, which have a weight and a bias: the convolutions, then the dense layers."""
        return [layer for layer in child_modules(self).values() if isinstance(layer, (Conv2d, Dense))]

    def probabilities(self, x: Tensor) -> Tensor:
        """x^L = S(z^{L−1}): (N, classes)."""
        return functional.softmax(self(x))  # eq. (23)

    def cost(self, x: Tensor, target: Tensor) -> Tensor:
        """J of equation (13), (), from class indices (N,) or probabilities (N, classes).

        Faster than the loss of ``model(x)``: one program computes J together with all its gradients.

        Raises:
            TypeError, ValueError, IndexError: as :func:`manualgrad.functional.softmax_cross_entropy`.
        """
        result = self._cost_by_plan(x, target)
        return functional.softmax_cross_entropy(self(x), target) if result is None else result[0]

    def cost_and_probabilities(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`cost`, and x^L = S(z^{L−1}), (N, classes), which has no gradient."""
        result = self._cost_by_plan(x, target)
        if result is not None:
            return result
        logits = self(x)
        return functional.softmax_cross_entropy(logits, target), functional.softmax(logits.detach())  # eq. (23)

    def find_plan(self, x: Tensor) -> guards.PlanAndParameters | str:
        """The plan for ``x`` with the parameters that it reads, or the reason why there is none."""
        if not self.fused:
            return "DocumentCNN(fused=False) runs each layer as a Function of its own"
        planned = guards.find_plan(child_modules(self).values(), x)
        # backprop.py reads R'(0) of all layers from the model, and has a ReLU behind each layer but the last
        if not isinstance(planned, str) and planned[0].network.subgradients != {self.subgradient}:
            return "a layer was removed, or its subgradient is not the model's"
        # backprop.py reads the pool index of the fused layers
        if not isinstance(planned, str) and not planned[0].network.is_fused:
            return "a convolution has a stride or padding, or another pooling"
        return planned

    def _cost_by_plan(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
        """J and x^L by a plan, which computes the gradients too; None without a plan, or if gradients are off."""
        if not is_grad_recorded() or not isinstance(target, Tensor) or not self._has_original_call():
            return None
        usable = guards.find_usable_plan(self, x)
        return None if isinstance(usable, str) else loss_apply(x, target, *usable)

    def _has_original_call(self) -> bool:
        """Return True if calling the model runs :meth:`forward` above and no more, and the loss function is ours."""
        return (
            type(self).forward is DocumentCNN.forward
            and type(self).__call__ is nn.Module.__call__
            and "forward" not in self.__dict__
            and not is_compiled_in_place(self)
            and not has_hooks(self)
            and functional.softmax_cross_entropy is softmax_cross_entropy
        )


def _pooled_size(conv: Conv2d, height: int, width: int) -> tuple[int, int]:
    """Height and width behind a convolution without padding and 2×2 pooling."""
    (kernel_height, kernel_width), (stride_height, stride_width) = conv.kernel_size, conv.stride
    return ((height - kernel_height) // stride_height + 1) // 2, ((width - kernel_width) // stride_width + 1) // 2
