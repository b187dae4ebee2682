"""Promise: ``from_torch`` makes our layers of any model's and computes the same; ``to_torch`` restores the model."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import manualgrad as mg
from manualgrad.interop import layers, operations
from tests.conftest import run_forward_backward
from tests.ops.test_purity import OperatorRecorder

CHANNELS_LAST = torch.channels_last
# For float64 values of about 10, whose terms are added in another order.
CLOSE = {"rtol": 0, "atol": 1e-12}


def run(module: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """Output, and gradients of floating inputs and of parameters. Inputs are copied, so layers may change them."""

    def run_on_copies(*leaves: Tensor) -> Tensor | tuple[Tensor, ...]:
        return module(*(x * 1 if x.is_floating_point() else x for x in leaves))

    results = run_forward_backward(run_on_copies, inputs, torch.ones_like)
    results |= {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return results


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


# ------------------------------------------------------------------------------------- what a conversion keeps


class Small(nn.Module):
    """A model of most kinds of layers, with batch norm and dropout; its ``view`` needs a contiguous tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.MaxPool2d(2), nn.Dropout2d(0.3), nn.Conv2d(4, 6, 3), nn.ReLU(),
        )  # fmt: skip
        self.drop = nn.Dropout(0.4)
        self.fc = nn.Linear(6 * 2 * 3, 5)
        self.softmax = nn.Softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.softmax(self.fc(self.drop(x.view(x.shape[0], -1))))


X = torch.randn(4, 3, 8, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def seeded(module: nn.Module, x: Tensor = X) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return run(module, x)


def test_a_model_is_the_same_in_training_and_the_original_is_untouched() -> None:
    native = Small().double()
    before, types = copy.deepcopy(native.state_dict()), [type(m) for m in native.modules()]
    ours, report = mg.from_torch(native, report=True)
    assert [type(m) for m in native.modules()] == types
    assert all(torch.equal(native.state_dict()[name], tensor) for name, tensor in before.items())
    torch.testing.assert_close(seeded(ours), seeded(native), **CLOSE)
    assert [(entry.name, entry.was) for entry in report.replaced] == [
        ("features.0", "torch.nn.Conv2d"), ("features.2", "torch.nn.ReLU"), ("features.3", "torch.nn.MaxPool2d"),
        ("features.5", "torch.nn.Conv2d"), ("features.6", "torch.nn.ReLU"), ("fc", "torch.nn.Linear"),
        ("softmax", "torch.nn.Softmax"),
    ]  # fmt: skip
    assert [(entry.name, entry.kind) for entry in report.left] == [
        ("features.1", "torch.nn.BatchNorm2d"), ("features.4", "torch.nn.Dropout2d"), ("drop", "torch.nn.Dropout")
    ]  # fmt: skip
    assert all("no such layer" in entry.why for entry in report.left)
    assert "replaced: 7" in str(report)
    assert "torch.nn.Linear -> manualgrad.interop.layers.Linear: fc" in str(report)


def test_states_load_in_both_directions() -> None:
    native = Small()
    ours, other = mg.from_torch(Small()), Small()
    assert list(ours.state_dict()) == list(native.state_dict())
    ours.load_state_dict(native.state_dict())
    other.load_state_dict(ours.state_dict())
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in native.state_dict().items())


@pytest.mark.parametrize("functional", [False, True])
def test_from_torch_and_to_torch_restore_the_model(functional: bool) -> None:
    native = Small()
    native.features[5].weight.requires_grad_(False)
    back = mg.to_torch(mg.from_torch(native, functional=functional))
    assert [(name, type(m)) for name, m in back.named_modules()] == [(n, type(m)) for n, m in native.named_modules()]
    for (name, layer), restored in zip(native.named_modules(), back.modules(), strict=True):
        assert vars(layer).keys() == vars(restored).keys(), name
        plain = {k: v for k, v in vars(layer).items() if isinstance(v, (int, str, bool, tuple, float))}
        assert plain == {k: vars(restored)[k] for k in plain}, name
    native_state, restored_state = (model.state_dict(keep_vars=True) for model in (native, back))
    assert list(native_state) == list(restored_state)
    for name, tensor in native_state.items():
        restored = restored_state[name]
        assert torch.equal(tensor, restored) and tensor is not restored, name
        assert tensor.requires_grad == restored.requires_grad, name
    torch.testing.assert_close(seeded(back.double()), seeded(native.double()), rtol=0, atol=0)


def test_copy_parameters_copies_or_shares_parameters() -> None:
    native = Small()
    shared, copied = mg.from_torch(native, copy_parameters=False), mg.from_torch(native)
    for name, parameter in native.named_parameters():
        assert shared.get_parameter(name) is parameter
        assert copied.get_parameter(name) is not parameter and torch.equal(copied.get_parameter(name), parameter)
    for name, buffer in native.named_buffers():
        assert shared.get_buffer(name) is not buffer, "the two models have running statistics of their own"
    assert mg.to_torch(shared, copy_parameters=False).fc.weight is native.fc.weight


def test_shared_layers_and_tied_weights_stay_shared() -> None:
    conv, relu = nn.Conv2d(3, 3, 1), nn.ReLU()
    native = nn.Sequential(OrderedDict(a=conv, b=relu, c=conv, d=relu, e=nn.Conv2d(3, 3, 1)))
    native.e.weight = conv.weight
    native.unregistered = [conv]
    ours = mg.from_torch(native)
    assert ours.a is ours.c is ours.unregistered[0] and ours.b is ours.d and type(ours.a) is layers.Conv2d
    assert ours.e is not ours.a and ours.e.weight is ours.a.weight
    assert len(list(ours.parameters())) == 3
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(ours(x), native(x))


def test_modes_dtypes_devices_and_formats_are_kept() -> None:
    native = Small().to(torch.bfloat16).to(memory_format=CHANNELS_LAST).eval()
    native.features[1].train()
    native.fc.weight.requires_grad_(False)
    ours = mg.from_torch(native)
    for model_state in (
        lambda model: [m.training for m in model.modules()],
        lambda model: [(p.dtype, p.stride(), p.requires_grad) for p in model.parameters()],
    ):
        assert model_state(ours) == model_state(native)
    assert all(p.is_meta for p in mg.from_torch(Small().to("meta")).parameters())
    assert ours.features[0].in_channels == 3 and ours.features[0].padding_mode == "reflect"
    assert ours.features[3].stride == 2 and ours.fc.out_features == 5


def test_hooks_are_kept() -> None:
    called: list[str] = []

    def hook(name: str) -> Callable:
        return lambda *args, **kwargs: called.append(name)

    native = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    native[0].register_forward_pre_hook(hook("before, with keywords"), with_kwargs=True)
    native[0].register_forward_hook(lambda module, inputs, output: output * 2)
    native[1].register_full_backward_hook(hook("backward"))
    native[1].register_full_backward_pre_hook(hook("before backward"))
    native[3].register_state_dict_pre_hook(hook("state"))
    native[3].register_load_state_dict_post_hook(hook("loaded"))
    native.register_forward_hook(hook("whole"))
    ours = mg.from_torch(native)
    x = torch.randn(2, 3, 2, 2)
    torch.testing.assert_close(run(ours, x), run(native, x))
    names = ["before, with keywords", "whole", "before backward", "backward"]
    assert called == [*names, *names]
    ours.load_state_dict(ours.state_dict())
    assert called[8:] == ["state", "loaded"]


def test_a_converted_model_works_under_transforms_compile_copy_and_pickle() -> None:
    native = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 3 * 3, 2)
    ).double()
    ours = mg.from_torch(native)
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)

    def per_example(model: nn.Module) -> dict[str, Tensor]:
        def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
            return torch.func.functional_call(model, parameters, (image[None],)).square().sum()

        parameters = {name: p.detach() for name, p in model.named_parameters()}
        return torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)

    torch.testing.assert_close(per_example(ours), per_example(native), **CLOSE)
    torch.testing.assert_close(torch.func.jvp(ours, (x,), (x,)), torch.func.jvp(native, (x,), (x,)), **CLOSE)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, x)["gradient 0"], run(native, x)["gradient 0"], **CLOSE)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(copied(x), ours(x))


def test_no_native_layer_runs_in_a_converted_one() -> None:
    native = nn.Sequential(
        *(nn.Conv2d(2, 2, 3, padding=1, padding_mode=mode) for mode in ("zeros", "reflect", "replicate", "circular")),
        nn.ReLU(inplace=True), nn.ReLU(), nn.MaxPool2d(2), nn.Softmax(1), nn.Flatten(), nn.Linear(2 * 3 * 3, 2),
    )  # fmt: skip
    loss = nn.CrossEntropyLoss()
    x, labels = torch.randn(2, 2, 6, 6), torch.tensor([0, 1])
    for convert, forbidden in ((mg.from_torch, False), (lambda module: module, True)):
        with OperatorRecorder() as recorder:
            convert(loss)(convert(native)(x), labels).backward()
        assert bool(recorder.forbidden()) == forbidden


# ------------------------------------------------------------------------------------- layers left, and refused


class OwnForward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class SubclassOnly(nn.Conv2d):
    pass


def conv_with_replaced_forward() -> nn.Module:
    conv = nn.Conv2d(2, 2, 1)
    conv.forward = torch.zeros_like
    return conv


def pruned_conv() -> nn.Module:
    conv = prune.l1_unstructured(nn.Conv2d(2, 2, 1), "weight", 0.5)
    conv(torch.ones(1, 2, 1, 1))
    return conv


LEFT = {
    "own forward": (lambda: OwnForward(2, 2, 1), "a subclass of torch.nn.Conv2d"),
    "own class": (lambda: SubclassOnly(2, 2, 1), "a subclass of torch.nn.Conv2d"),
    "replaced forward": (conv_with_replaced_forward, "a forward of its own"),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Conv2d(2, 2, 1)), "parametrized"),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(2, 2)), "parametrized"),
    "old weight_norm": (lambda: nn.utils.weight_norm(nn.Conv2d(2, 2, 1)), "computed by a hook"),
    "pruned": (pruned_conv, "computed by a hook"),
    "complex": (lambda: nn.Conv2d(2, 2, 1, dtype=torch.complex64), "of torch.complex64"),
    "softmax without dim": (lambda: nn.Softmax(), "deprecated"),
    "unknown layer": (lambda: nn.GELU(), "no such layer"),
    "quantised": (lambda: torch.ao.nn.qat.Linear(2, 2, qconfig=torch.ao.quantization.get_default_qat_qconfig()),
                  "a subclass of torch.nn.Linear"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "why"), LEFT.values(), ids=LEFT)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated", "ignore::DeprecationWarning")
def test_layers_that_ours_cannot_replace_are_left_and_listed(make: Callable, why: str) -> None:
    native = nn.ModuleDict({"layer": make()})
    ours, report = mg.from_torch(native, report=True)
    assert type(ours.layer) is type(native.layer) or "Parametrized" in type(ours.layer).__name__
    assert not report.replaced
    assert why in next(entry.why for entry in report.left if entry.name == "layer")


def test_a_listed_subclass_is_replaced_unless_it_overrides_forward() -> None:
    native = nn.Sequential(SubclassOnly(2, 2, 1))
    assert type(mg.from_torch(native, subclasses={SubclassOnly})[0]) is layers.Conv2d
    with pytest.raises(TypeError, match=r"got the class SubclassOnly; write \{SubclassOnly\}"):
        mg.from_torch(native, subclasses=SubclassOnly)
    with pytest.raises(ValueError, match="OwnForward in subclasses has a forward of its own"):
        mg.from_torch(native, subclasses={OwnForward})
    with pytest.raises(ValueError, match=r"must extend a layer that manualgrad has, got .*GELU"):
        mg.from_torch(native, subclasses={nn.GELU})


@pytest.mark.parametrize("convert", [mg.from_torch, mg.to_torch])
def test_functions_and_uninitialized_lazy_layers_are_refused(convert: Callable) -> None:
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got function"):
        convert(F.relu)
    with pytest.raises(ValueError, match="1 is a LazyConv2d without parameters; run the model on an input first"):
        convert(nn.Sequential(nn.ReLU(), nn.LazyConv2d(2, 1)))


def test_a_second_conversion_changes_nothing() -> None:
    ours = mg.from_torch(Small())
    again, report = mg.from_torch(ours, report=True)
    assert [type(m) for m in again.modules()] == [type(m) for m in ours.modules()] and not report.replaced
