from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from modelaudit.architectures._ops import Op, from_hint, is_sequential, max_pool, square
from modelaudit.architectures._plain_search import Convolution
from modelaudit.weights import ModuleHint
from tests.helpers.architectures import hints_of


def _hint(module: nn.Module) -> ModuleHint:
    return hints_of(module)[""]


@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(),
        nn.ReLU6(),
        nn.LeakyReLU(0.3),
        nn.ELU(0.7),
        nn.CELU(0.7),
        nn.SELU(),
        nn.GELU(),
        nn.GELU(approximate="tanh"),
        nn.SiLU(),
        nn.Mish(),
        nn.Tanh(),
        nn.Sigmoid(),
        nn.Hardswish(),
        nn.Hardsigmoid(),
        nn.Hardtanh(-0.5, 0.7),
        nn.Softplus(2.0, 10.0),
        nn.Softsign(),
        nn.Identity(),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d((2, 2)),
        nn.AdaptiveAvgPool2d(2),
        nn.AdaptiveMaxPool2d((2, 2)),
        nn.Flatten(),
    ],
    ids=repr,
)
def test_a_hint_gives_a_module_that_computes_the_same(module: nn.Module) -> None:
    op = from_hint(_hint(module))
    assert op is not None
    batch = torch.randn((2, 3, 7, 7), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(op.build()(batch), module(batch), rtol=0, atol=0)


@pytest.mark.parametrize(
    "module", [nn.Dropout(), nn.Dropout2d(0.9), nn.Softmax(dim=1), nn.LogSoftmax(dim=1)]
)
def test_dropout_and_softmax_are_nothing_to_an_audit(module: nn.Module) -> None:
    assert from_hint(_hint(module)) == Op("Identity")


@pytest.mark.parametrize(
    "module",
    [
        nn.Upsample(scale_factor=2),
        nn.Flatten(0),
        nn.MaxPool2d((2, 3)),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(100),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AdaptiveAvgPool2d((None, 1)),
        nn.AdaptiveAvgPool2d(1000),
        nn.LeakyReLU(1e9),
    ],
    ids=repr,
)
def test_what_is_not_understood_or_not_credible_is_none(module: nn.Module) -> None:
    assert from_hint(_hint(module)) is None


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("LeakyReLU", {"negative_slope": "steep"}),
        ("MaxPool2d", {}),
        ("MaxPool2d", {"kernel_size": 2, "stride": 0}),
        ("MaxPool2d", {"kernel_size": True}),
        ("AdaptiveAvgPool2d", {"output_size": ()}),
    ],
)
def test_attributes_of_another_type_are_not_believed(
    kind: str, attributes: dict[str, str | int | tuple[()]]
) -> None:
    hint = ModuleHint(class_name=f"torch.nn.modules.x.{kind}", attributes=attributes)
    assert from_hint(hint) is None


def test_a_strangers_class_of_the_same_name_is_not_torchs() -> None:
    assert from_hint(ModuleHint(class_name="evil.ReLU")) is None
    assert not is_sequential(ModuleHint(class_name="__main__.Sequential"))
    assert is_sequential(_hint(nn.Sequential()))


def test_an_unknown_kind_is_not_built() -> None:
    with pytest.raises(ValueError, match="'Upsample'"):
        Op("Upsample").build()


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_a_poolings_size_is_torchs(ceil_mode: bool) -> None:
    for size, kernel, stride, padding in product(range(1, 12), (1, 2, 3, 5), (1, 2, 3), (0, 1, 2)):
        if padding > kernel // 2:
            continue
        op = Op("MaxPool2d", (kernel, stride, padding, int(ceil_mode)))
        try:
            expected = op.build()(torch.zeros(1, 1, size, size)).shape[-1]
        except RuntimeError:
            expected = 0
        assert op.output_size(size) == expected, (op, size)


def test_a_convolutions_size_is_torchs() -> None:
    for size, kernel, stride, padding, dilation in product(
        range(1, 10), (1, 2, 3), (1, 2), (0, 1), (1, 2)
    ):
        part = Convolution(0, kernel, stride, padding, dilation)
        layer = nn.Conv2d(1, 1, kernel, stride, padding, dilation)
        try:
            expected = layer(torch.zeros(1, 1, size, size)).shape[-1]
        except RuntimeError:
            expected = 0
        assert part.output_size(size) == expected, (part, size)


def test_other_operations_keep_or_set_the_size() -> None:
    assert Op("ReLU").output_size(9) == 9
    assert Op("AdaptiveAvgPool2d", (4,)).output_size(9) == 4
    assert str(max_pool(2, 2)) == "MaxPool2d(2,2,0,0)"
    assert str(Op("ReLU")) == "ReLU"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3), ((3, 3), 3), ((3, 4), None), ((), None), (True, None), ("3", None), (99, None)],
)
def test_a_square_is_one_integer_in_range(
    value: int | str | tuple[int, ...], expected: int | None
) -> None:
    assert square(value, low=1, high=10) == expected
