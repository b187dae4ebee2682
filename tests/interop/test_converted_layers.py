"""Promise: each layer that ``from_torch`` makes gives native numbers in native memory layouts, in place too."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.interop import layers, operations
from tests.interop.model_runs import CHANNELS_LAST, CLOSE, run

# ------------------------------------------------------------------------------------------- one layer at a time

IMAGE = (2, 4, 7, 6)


LAYERS = {
    "Conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2), IMAGE),
    "Conv2d, same": (lambda: nn.Conv2d(4, 3, (4, 3), padding="same", bias=False), IMAGE),
    **{
        f"Conv2d, {mode}": (lambda mode=mode: nn.Conv2d(4, 6, (3, 2), 2, (2, 3), padding_mode=mode), IMAGE)
        for mode in ("reflect", "replicate", "circular")
    },
    "Conv2d, circular, same": (lambda: nn.Conv2d(4, 3, (4, 3), padding="same", padding_mode="circular"), IMAGE),
    "Conv2d, reflect, valid": (lambda: nn.Conv2d(4, 3, 3, padding="valid", padding_mode="reflect"), IMAGE),
    "Conv2d, unbatched": (lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), IMAGE[1:]),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "MaxPool2d, indices": (lambda: nn.MaxPool2d((3, 2), dilation=(1, 2), return_indices=True), IMAGE),
    "ReLU": (lambda: nn.ReLU(), IMAGE),
    "ReLU, in place": (lambda: nn.ReLU(inplace=True), IMAGE),
    "Linear": (lambda: nn.Linear(6, 3), IMAGE),
    "Linear, without bias": (lambda: nn.Linear(6, 3, bias=False), (2, 6)),
    "Softmax": (lambda: nn.Softmax(1), IMAGE),
    "Flatten": (lambda: nn.Flatten(), IMAGE),
    "Flatten, start_dim and end_dim": (lambda: nn.Flatten(0, -2), IMAGE),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch warns that it copies the input
@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, CHANNELS_LAST], ids=["contiguous", "channels_last"]
)
@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_layer_gives_natives_numbers_in_natives_layout(
    make: Callable, shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    native = make().double()
    if len(shape) == 4:
        native = native.to(memory_format=memory_format)
    ours, report = mg.from_torch(native, report=True)
    assert len(report.replaced) == 1 and not report.left
    assert type(ours).__module__.startswith("manualgrad.")
    x = torch.randn(shape, dtype=torch.float64).relu()  # with zeros, where ReLU's derivative is a convention
    x = x.to(memory_format=memory_format) if len(shape) == 4 else x
    torch.testing.assert_close(run(ours, x), run(native, x), **CLOSE)
    outputs, expected = (
        result if isinstance(result, tuple) else (result,) for result in (ours(x.clone()), native(x.clone()))
    )
    assert [output.stride() for output in outputs] == [output.stride() for output in expected]


LOSSES = {
    "plain": {},
    "all options": {
        "weight": torch.tensor([1.0, 2, 3]),
        "ignore_index": 1,
        "reduction": "sum",
        "label_smoothing": 0.2,
    },
    "none": {"reduction": "none"},
}


@pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES)
def test_the_loss_keeps_its_options(options: dict) -> None:
    native = nn.CrossEntropyLoss(**options).double()
    ours = mg.from_torch(native)
    assert type(ours) is layers.CrossEntropyLoss
    x, labels = torch.randn(4, 3, 2, dtype=torch.float64), torch.randint(3, (4, 2))
    torch.testing.assert_close(run(ours, x, labels), run(native, x, labels), **CLOSE)
    assert list(ours.state_dict()) == list(native.state_dict())


def test_strides_of_sizes_1_are_natives_too() -> None:
    """With such sizes a tensor is contiguous and channels_last at once; the next layer decides by the strides."""
    for shape in [(2, 1, 6, 5), (1, 3, 6, 5), (2, 3, 1, 5), (2, 3, 5, 1), (2, 3, 1, 1), (1, 1, 1, 1), (2, 3, 6, 5)]:
        for x in (torch.randn(shape), torch.randn(shape).to(memory_format=CHANNELS_LAST)):
            for out_channels in (1, 4):
                for memory_format in (torch.contiguous_format, CHANNELS_LAST):
                    w = torch.randn(out_channels, shape[1], 3, 3).to(memory_format=memory_format)
                    assert operations.conv2d(x, w, padding=1).stride() == F.conv2d(x, w, padding=1).stride()
            for kernel in (1, tuple(min(2, size) for size in shape[2:])):
                assert operations.max_pool2d(x, kernel).stride() == F.max_pool2d(x, kernel).stride()
            assert operations.softmax(x, 1).stride() == F.softmax(x, 1).stride()


@pytest.mark.parametrize(("mode", "amount"), [("reflect", 4), ("circular", 5)])
def test_padding_larger_than_the_image_allows_is_refused(mode: str, amount: int) -> None:
    native = nn.Conv2d(1, 1, 3, padding=amount, padding_mode=mode)
    x = torch.randn(1, 1, 4, 4)
    with pytest.raises(RuntimeError):
        native(x)
    with pytest.raises(
        ValueError, match=f"padding_mode='{mode}' can pad a dimension of size 4 by at most {amount - 1}"
    ):
        mg.from_torch(native)(x)


# -------------------------------------------------------------------------------------------------------- in place


class ReadAfterwards(nn.Module):
    """With ``inplace``, later layers read a tensor that a ReLU changed; without, a ReLU's input is changed later."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        y = self.relu(z)
        z += 3 * y
        return self.conv(z) * z if self.relu.inplace else z.sin() + y


@pytest.mark.parametrize("inplace", [False, True])
def test_in_place_changes_of_a_relu_are_seen_by_later_layers(inplace: bool) -> None:
    native = ReadAfterwards(inplace).double()
    if inplace:  # y is z: PyTorch refuses the backward pass through the change, for both kinds of ReLU
        for module in (native, mg.from_torch(native)):
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                run(module, torch.randn(IMAGE, dtype=torch.float64))
        with torch.no_grad():
            x = torch.randn(IMAGE, dtype=torch.float64)
            torch.testing.assert_close(mg.from_torch(native)(x), native(x), **CLOSE)
    else:
        x = torch.randn(IMAGE, dtype=torch.float64)
        torch.testing.assert_close(run(mg.from_torch(native), x), run(native, x), **CLOSE)


class Shortcut(nn.Module):
    """The shortcut reads a tensor that a ReLU changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        out = self.second(self.relu(z))
        out += z  # relu(z), not z
        return self.relu(out)


def test_a_shortcut_reads_what_its_relu_wrote() -> None:
    native = Shortcut().double()
    x = torch.randn(IMAGE, dtype=torch.float64)
    torch.testing.assert_close(run(mg.from_torch(native), x), run(native, x), **CLOSE)
    out_of_place = copy.deepcopy(native)
    out_of_place.relu.inplace = False
    assert (out_of_place(x) - native(x)).abs().max() > 0.1, (
        "a ReLU that does not write over its input must give another result"
    )


def test_in_place_changes_the_very_tensor_and_refuses_a_leaf() -> None:
    relu = mg.from_torch(nn.ReLU(inplace=True))
    x = torch.randn(5)
    assert relu(x) is x and (x >= 0).all()
    with pytest.raises(RuntimeError, match="leaf Variable"):
        relu(torch.randn(5, requires_grad=True))
    part = (base := torch.randn(3, 4, requires_grad=True)) * 1
    relu(part[:, :2])
    part.sum().backward()
    assert torch.equal(base.grad, torch.cat([(base[:, :2] > 0).float(), torch.ones(3, 2)], 1))
