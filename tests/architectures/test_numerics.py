"""The modules against literal forward passes over their state dicts, from the papers' formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from modelaudit.architectures.cifar_densenet import CifarDenseNet
from modelaudit.architectures.cifar_mobilenet_v2 import CifarMobileNetV2
from modelaudit.architectures.cifar_preact_resnet import CifarPreActResNet
from modelaudit.architectures.cifar_resnet import CifarResNet
from modelaudit.architectures.cifar_vgg import CifarVgg
from modelaudit.architectures.wide_resnet import WideResNet
from tests.helpers.architectures import images, logits, seeded

if TYPE_CHECKING:
    from torch import Tensor, nn


class Net:
    """Layers of a state dict as functions of a key prefix."""

    def __init__(self, module: nn.Module) -> None:
        self.state = {key: value.double() for key, value in module.state_dict().items()}

    def __contains__(self, prefix: str) -> bool:
        return f"{prefix}.weight" in self.state

    def conv(self, name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        bias = self.state.get(f"{name}.bias")
        padding = weight.shape[-1] // 2
        return functional.conv2d(x, weight, bias, stride, padding, 1, groups)

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"].reshape(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def act(self, name: str, x: Tensor) -> Tensor:
        return self.norm(name, x).clamp(min=0)

    def head(self, name: str, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]


def _resnet(net: Net, x: Tensor, blocks: tuple[int, ...]) -> Tensor:
    x = net.act("bn1", net.conv("conv1", x))
    for stage, count in enumerate(blocks, start=1):
        for i in range(count):
            at, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            deep = f"{at}.conv3" in net
            out = net.act(f"{at}.bn1", net.conv(f"{at}.conv1", x, 1 if deep else stride))
            out = net.norm(f"{at}.bn2", net.conv(f"{at}.conv2", out, stride if deep else 1))
            if deep:
                out = net.norm(f"{at}.bn3", net.conv(f"{at}.conv3", out.clamp(min=0)))
            if f"{at}.shortcut.0" in net:
                x = net.norm(f"{at}.shortcut.1", net.conv(f"{at}.shortcut.0", x, stride))
            x = (out + x).clamp(min=0)
    return net.head("linear", x)


def _preact(net: Net, x: Tensor, blocks: tuple[int, ...]) -> Tensor:
    x = net.conv("conv1", x)
    for stage, count in enumerate(blocks, start=1):
        for i in range(count):
            at, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            deep = f"{at}.conv3" in net
            act = net.act(f"{at}.bn1", x)
            if f"{at}.shortcut.0" in net:
                x = net.conv(f"{at}.shortcut.0", act, stride)
            out = net.conv(f"{at}.conv1", act, 1 if deep else stride)
            out = net.conv(f"{at}.conv2", net.act(f"{at}.bn2", out), stride if deep else 1)
            if deep:
                out = net.conv(f"{at}.conv3", net.act(f"{at}.bn3", out))
            x = out + x
    return net.head("linear", net.act("bn", x) if "bn" in net else x)


def _wide(net: Net, x: Tensor, count: int) -> Tensor:
    x = net.conv("conv1", x)
    for stage in (1, 2, 3):
        for i in range(count):
            at, stride = f"block{stage}.layer.{i}", 2 if stage > 1 and i == 0 else 1
            act = net.act(f"{at}.bn1", x)
            if f"{at}.convShortcut" in net:
                x = net.conv(f"{at}.convShortcut", act, stride)
            out = net.act(f"{at}.bn2", net.conv(f"{at}.conv1", act, stride))
            x = net.conv(f"{at}.conv2", out) + x
    return net.head("fc", net.act("bn1", x))


def _dense(net: Net, x: Tensor, blocks: tuple[int, ...]) -> Tensor:
    x = net.conv("conv1", x)
    for stage, count in enumerate(blocks, start=1):
        for i in range(count):
            at = f"dense{stage}.{i}"
            out = net.act(f"{at}.bn2", net.conv(f"{at}.conv1", net.act(f"{at}.bn1", x)))
            x = torch.cat([net.conv(f"{at}.conv2", out), x], dim=1)
        if f"trans{stage}.conv" in net:
            x = net.conv(f"trans{stage}.conv", net.act(f"trans{stage}.bn", x))
            n, c, h, w = x.shape
            x = x.reshape(n, c, h // 2, 2, w // 2, 2).mean(dim=(3, 5))
    return net.head("linear", net.act("bn", x))


def _mobile(net: Net, x: Tensor, strides: tuple[int, ...]) -> Tensor:
    x = net.act("bn1", net.conv("conv1", x))
    for i, stride in enumerate(strides):
        at = f"layers.{i}"
        out = net.act(f"{at}.bn1", net.conv(f"{at}.conv1", x))
        out = net.act(f"{at}.bn2", net.conv(f"{at}.conv2", out, stride, out.shape[1]))
        out = net.norm(f"{at}.bn3", net.conv(f"{at}.conv3", out))
        if f"{at}.shortcut.0" in net:
            x = net.norm(f"{at}.shortcut.1", net.conv(f"{at}.shortcut.0", x))
        x = out + x if stride == 1 else out
    return net.head("linear", net.act("bn2", net.conv("conv2", x)))


def _vgg(net: Net, x: Tensor, counts: tuple[int, ...]) -> Tensor:
    index = 0
    for count in counts:
        for _ in range(count):
            x = net.act(f"features.{index + 1}", net.conv(f"features.{index}", x))
            index += 3
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
        index += 1
    return net.head("classifier", x)


SHALLOW, DEEP = (2, 2, 2, 2), (3, 4, 6, 3)
STRIDES = (1, *(1,) * 2, 2, *(1,) * 2, 2, *(1,) * 6, 2, *(1,) * 3)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (CifarResNet(width=4), lambda n, x: _resnet(n, x, SHALLOW)),
        (CifarResNet(depth=50, width=4), lambda n, x: _resnet(n, x, DEEP)),
        (CifarPreActResNet(width=4), lambda n, x: _preact(n, x, SHALLOW)),
        (
            CifarPreActResNet(depth=50, width=4, has_final_norm=True),
            lambda n, x: _preact(n, x, DEEP),
        ),
        (WideResNet(depth=16, widths=(16, 8, 12)), lambda n, x: _wide(n, x, 2)),
        (
            CifarDenseNet(blocks=(2, 1, 3, 2), growth_rate=6),
            lambda n, x: _dense(n, x, (2, 1, 3, 2)),
        ),
        (CifarMobileNetV2(), lambda n, x: _mobile(n, x, STRIDES)),
        (CifarVgg(depth=16, width=4), lambda n, x: _vgg(n, x, (2, 2, 3, 3, 3))),
    ],
    ids=["resnet18", "resnet50", "preact18", "preact50bn", "wrn16", "densenet", "mobilenet", "vgg"],
)
def test_a_module_computes_the_published_formula(module: nn.Module, expected: object) -> None:
    assert callable(expected)
    module = seeded(lambda: module).double()
    batch = images((2, 3, 32, 32)).double()
    torch.testing.assert_close(
        logits(module, batch), expected(Net(module), batch), rtol=1e-9, atol=1e-9
    )
