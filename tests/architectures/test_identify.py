from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from torch import nn

from modelaudit.architectures import ArchitectureFamily, Candidate, identify, load
from modelaudit.architectures._build import on_meta
from modelaudit.architectures.cifar_resnet import CifarResNet, CifarResNetFamily
from modelaudit.architectures.cifar_vgg import CifarVggFamily
from modelaudit.errors import ConfigError, PluginError, UnknownArchitectureError
from modelaudit.weights import Weights
from tests.helpers.architectures import (
    agrees,
    families,
    hints_of,
    identify_all,
    images,
    logits,
    seeded,
    weights_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def _resnet_weights() -> Weights:
    return weights_of(CifarResNet(width=16))


def _with(weights: Weights, **changes: torch.Tensor | None) -> Weights:
    """Return the weights with keys (dots written ``__``) replaced, added or, if None, removed."""
    tensors = dict(weights.tensors)
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            del tensors[key]
        else:
            tensors[key] = tensor
    return Weights(tensors=tensors)


def test_a_near_miss_names_the_first_differing_key_with_both_shapes() -> None:
    weights = _with(_resnet_weights(), layer4__1__conv2__weight=torch.zeros(128, 64, 3, 3))
    with pytest.raises(UnknownArchitectureError) as caught:
        identify_all(weights)
    assert str(caught.value) == (
        "architecture not recognised (first keys: conv1.weight, bn1.weight, bn1.bias ...); "
        "pass --arch"
    )
    assert len(caught.value.closest) == 3
    assert caught.value.closest[0] == (
        "cifar_resnet18 (width 16): first differing key 'layer4.1.conv2.weight' "
        "expected (128, 128, 3, 3), found (128, 64, 3, 3)"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bn1__bias": None}, "'bn1.bias' expected (16,), found nothing"),
        ({"bn2__bias": torch.zeros(3)}, "'bn2.bias' expected nothing, found (3,)"),
        (
            {"bn1__bias": torch.zeros(16, dtype=torch.int8)},
            "'bn1.bias' expected (16,), found (16,) of torch.int8",
        ),
    ],
)
def test_a_missing_surplus_or_integer_tensor_is_a_difference(
    change: dict[str, torch.Tensor | None], said: str
) -> None:
    with pytest.raises(UnknownArchitectureError) as caught:
        identify_all(_with(_resnet_weights(), **change))
    assert caught.value.closest[0] == f"cifar_resnet18 (width 16): first differing key {said}"


def test_a_refusal_says_nothing_twice() -> None:
    with torch.device("meta"):
        tensors = dict(CifarResNet().state_dict())
        tensors["linear.weight"] = torch.zeros(10, 11)
    with pytest.raises(UnknownArchitectureError) as caught:
        identify_all(Weights(tensors=tensors))
    assert len(set(caught.value.closest)) == 3


def test_two_keys_with_one_meaning_are_a_difference() -> None:
    weights = _with(_resnet_weights(), fc__weight=torch.zeros(10, 128))
    tensors = dict(weights.tensors)
    # without a "linear", "fc" is the head; both spellings of its bias are left
    tensors["fc.bias"] = tensors["linear.bias"]
    del tensors["linear.weight"]
    with pytest.raises(UnknownArchitectureError) as caught:
        identify_all(Weights(tensors=tensors))
    assert "'linear.bias' expected once, found also as 'fc.bias'" in caught.value.closest[0]


def test_keys_that_look_like_nothing_still_get_three_closest() -> None:
    with pytest.raises(UnknownArchitectureError) as caught:
        identify_all(Weights(tensors={"foo.0.bar": torch.zeros(3)}))
    assert "(first keys: foo.0.bar)" in str(caught.value)
    assert len(caught.value.closest) == 3
    assert all("first differing key" in line for line in caught.value.closest)


@pytest.mark.parametrize(
    "tensors",
    [{}, {"conv1.weight": torch.zeros(0, 3, 3, 3), "bn1.weight": torch.zeros(4)}],
)
def test_no_tensors_and_empty_tensors_are_refused(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UnknownArchitectureError, match="architecture not recognised"):
        identify_all(Weights(tensors=tensors))


@pytest.mark.parametrize(
    "key",
    [
        "weight",
        ".weight",
        "a..weight",
        "forward.weight",
        "conv1.weight",
        "layer1.0.conv1.weight",
        "features.0.weight",
        "features.99999999999999999999.weight",
        "features.0.0.weight",
        "9" * 5000 + ".weight",
        "layer1.999999999.conv1.weight",
        "dense1.0.conv2.weight",
        "block1.layer.0.conv1.weight",
        "٣.weight",
    ],
)
def test_odd_keys_and_shapes_never_crash_a_family(key: str) -> None:
    for shape in [(), (4,), (2, 3), (4, 3, 3, 3), (4, 3, 3, 5), (2, 3, 4, 5, 6)]:
        tensors = {key: torch.zeros(shape), "conv1.bias": torch.zeros(4)}
        for extra in ({}, {"layer1.0.bias": torch.zeros(2, 2, 2, 2)}):
            weights = Weights(tensors={**tensors, **extra})
            for family in families():
                for candidate in family.propose(weights):
                    on_meta(candidate.build)


def test_half_of_a_known_networks_keys_never_crash_a_family() -> None:
    tensors = _resnet_weights().tensors
    for start in range(2):
        some = {key: tensor for i, (key, tensor) in enumerate(tensors.items()) if (i + start) % 4}
        with pytest.raises(UnknownArchitectureError):
            identify_all(Weights(tensors=some))


def test_a_missing_batch_counter_is_no_difference() -> None:
    module = seeded(lambda: CifarResNet(width=4))
    tensors = {
        key: tensor
        for key, tensor in module.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    weights = Weights(tensors=tensors)
    (candidate,) = identify_all(weights)
    assert agrees(candidate, weights, module, images((2, 3, 32, 32)))


@pytest.mark.parametrize("name", ["cifar_resnet18", "cifar_resnet"])
def test_a_name_or_a_family_restricts_the_search(name: str) -> None:
    (candidate,) = identify_all(_resnet_weights(), name)
    assert candidate.name == "cifar_resnet18"


def test_a_known_name_that_does_not_fit_says_where_it_differs() -> None:
    with pytest.raises(UnknownArchitectureError, match="not a cifar_resnet34") as caught:
        identify_all(_resnet_weights(), "cifar_resnet34")
    assert caught.value.closest[0].startswith("cifar_resnet34 (width 64): first differing key")


def test_an_unknown_name_is_a_usage_error_that_lists_near_names() -> None:
    with pytest.raises(ConfigError, match="'cifar_resnet18'"):
        identify_all(_resnet_weights(), "resnet18_cifar")
    with pytest.raises(ConfigError, match=r"known are .*cifar_vgg16_bn"):
        identify_all(_resnet_weights(), "zzz")


def test_a_fallback_is_not_asked_where_another_family_fits_except_by_name() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 3))
    weights = weights_of(module)
    assert {c.family for c in identify_all(weights)} == {"plain_sequence"}
    assert {c.family for c in identify_all(weights, "plain_cnn")} == {"plain_sequence"}


class _Scaled(nn.Module):
    """A stranger's network with a constant that no state dict carries."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor([2.0])
        self.register_buffer("shift", torch.ones(1), persistent=False)
        self.only = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.only(x.flatten(1)) * self.scale + self.shift  # type: ignore[no-any-return, operator]


class _ThirdParty(ArchitectureFamily):
    id: ClassVar[str] = "third_party"
    summary: ClassVar[str] = "a stranger's network"
    reference: ClassVar[str] = "nowhere"

    def propose(self, weights: Weights) -> Iterator[Candidate]:
        if "only.weight" in weights.tensors:
            # the second is the same again
            yield self._candidate()
            yield self._candidate()

    def names(self) -> Iterator[str]:
        yield "scaled"

    def _candidate(self) -> Candidate:
        return Candidate(
            name="scaled",
            family=self.id,
            arguments={},
            build=_Scaled,
            input_channels=3,
            num_classes=3,
            input_sizes=(2,),
        )


def test_a_third_partys_family_is_asked_and_its_duplicates_are_dropped() -> None:
    module = seeded(_Scaled)
    weights = weights_of(module)
    assert "shift" not in weights.tensors
    (candidate,) = identify(weights, families=[*families(), _ThirdParty()])
    assert candidate.name == "scaled"
    loaded = load(candidate, weights)
    batch = images((2, 3, 2, 2))
    torch.testing.assert_close(logits(loaded, batch), logits(module, batch))


def test_a_third_party_without_examples_adds_none_to_a_refusal() -> None:
    with pytest.raises(UnknownArchitectureError) as caught:
        identify(_resnet_weights(), families=[_ThirdParty()])
    assert caught.value.closest == ()


class _Broken(_ThirdParty):
    def propose(self, weights: Weights) -> Iterator[Candidate]:
        def fails() -> nn.Module:
            raise PluginError("the library is missing; install it")

        yield Candidate(
            name="scaled",
            family=self.id,
            arguments={},
            build=fails,
            input_channels=3,
            num_classes=3,
            input_sizes=(2,),
        )


def test_a_broken_library_matters_only_where_nothing_else_fits() -> None:
    weights = _resnet_weights()
    (candidate,) = identify(weights, families=[_Broken(), CifarResNetFamily()])
    assert candidate.name == "cifar_resnet18"
    with pytest.raises(PluginError, match="install it"):
        identify(weights, families=[_Broken(), CifarVggFamily()])


def test_load_copies_the_weights_as_float32_and_asks_for_no_gradients() -> None:
    module = seeded(lambda: CifarResNet(width=4)).half()
    weights = weights_of(module)
    before = {key: tensor.clone() for key, tensor in weights.tensors.items()}
    (candidate,) = identify_all(weights)
    loaded = load(candidate, weights)
    assert not loaded.training
    for key, tensor in loaded.state_dict().items():
        expected = torch.int64 if key.endswith("num_batches_tracked") else torch.float32
        assert tensor.dtype == expected
        assert tensor.data_ptr() != weights.tensors[key].data_ptr()
        tensor.zero_()
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert all(torch.equal(before[key], tensor) for key, tensor in weights.tensors.items())


def test_identify_and_load_leave_the_global_random_state_alone() -> None:
    weights = weights_of(seeded(_Scaled))
    state = torch.get_rng_state()
    (candidate,) = identify(weights, families=[_ThirdParty()])
    load(candidate, weights)
    (other,) = identify_all(_resnet_weights_without_drawing(state))
    assert other.name == "cifar_resnet18"
    assert torch.equal(torch.get_rng_state(), state)


def _resnet_weights_without_drawing(state: torch.Tensor) -> Weights:
    weights = _resnet_weights()
    torch.set_rng_state(state)
    return weights


def test_load_refuses_other_weights_by_name() -> None:
    (candidate,) = identify_all(_resnet_weights())
    other = weights_of(CifarResNet(width=4))
    with pytest.raises(UnknownArchitectureError, match=re.escape("'conv1.weight' expected")):
        load(candidate, other)


def test_two_loads_are_independent_of_each_other() -> None:
    weights = _resnet_weights()
    (candidate,) = identify_all(weights)
    first, second = load(candidate, weights), load(candidate, weights)
    first.get_parameter("conv1.weight").data.zero_()
    assert second.get_parameter("conv1.weight").abs().sum() > 0


def test_a_resnet18_is_identified_well_within_half_a_second() -> None:
    weights = weights_of(CifarResNet(width=64), with_hints=True)
    identify_all(weights)
    start = time.process_time()
    identify_all(weights)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("conv1.stride", (1000, 1000)),
        ("conv1.stride", "wide"),
        ("conv1.padding", -1),
        ("conv1.padding_mode", "odd"),
        ("conv1.padding_mode", 3),
        ("bn1.eps", "small"),
        ("bn1.eps", -1.0),
    ],
)
def test_an_incredible_hint_is_not_believed(attribute: str, value: object) -> None:
    module = seeded(lambda: CifarResNet(width=4))
    path, _, name = attribute.partition(".")
    layer = module.get_submodule(path)
    usual = getattr(layer, name)
    setattr(layer, name, value)
    weights = Weights(tensors=module.state_dict(), hints=hints_of(module))
    (candidate,) = identify_all(weights)
    setattr(layer, name, usual)
    assert agrees(candidate, weights, module, images((2, 3, 32, 32)))


def test_a_hint_that_no_layer_can_follow_is_not_believed() -> None:
    module = CifarResNet(width=4)
    module.conv1.stride, module.conv1.padding = (2, 2), "same"
    weights = Weights(tensors=module.state_dict(), hints=hints_of(module))
    (candidate,) = identify_all(weights)
    stem = load(candidate, weights).get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    assert (stem.stride, stem.padding) == ((2, 2), (1, 1))
