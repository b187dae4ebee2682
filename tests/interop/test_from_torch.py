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
from manualgrad.interop import layers
from tests.interop.model_runs import CHANNELS_LAST, CLOSE, run, seeded
from tests.ops.test_purity import OperatorRecorder

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
