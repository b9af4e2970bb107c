from __future__ import annotations

import pytest
import torch

from modelaudit import architectures
from modelaudit.bench.models import make_module
from modelaudit.bench.plan import ARCHITECTURES
from modelaudit.bench.train import build_model
from modelaudit.errors import ConfigError
from modelaudit.registry import Registry
from modelaudit.weights import Weights
from tests.helpers.attacks import tiny_plan


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_of_a_plan_is_one_that_scans_recognise(name: str) -> None:
    plan = tiny_plan(architecture=name, width=8)
    model = build_model(plan, num_classes=7, in_channels=3).eval()
    images = torch.rand(2, 3, 32, 32)
    weights = Weights(tensors=model.state_dict())
    families = [cls() for _, cls in Registry("architectures").load_all()]
    found = architectures.identify(weights, families=families)
    again = architectures.load(found[0], weights).eval()
    with torch.inference_mode():
        logits = model(images)
        assert logits.shape == (2, 7)
        assert torch.isfinite(logits).all()
        assert torch.allclose(again(images), logits, atol=1e-5)


@pytest.mark.parametrize(("name", "width"), [("cifar_densenet121", 64), ("cifar_mobilenet_v2", 32)])
def test_published_widths(name: str, width: int) -> None:
    with torch.device("meta"):
        module = make_module(name, width=width, num_classes=10, in_channels=3)
    count = sum(parameter.numel() for parameter in module.parameters())
    # 6.96 M and 2.30 M are what the toolkits' CIFAR forms have
    assert count == {"cifar_densenet121": 6_956_298, "cifar_mobilenet_v2": 2_296_922}[name]


def test_odd_width_of_a_densenet_raises() -> None:
    with pytest.raises(ConfigError, match="must be even"):
        make_module("cifar_densenet121", width=9, num_classes=10, in_channels=3)


def test_unknown_architecture_raises() -> None:
    with pytest.raises(ConfigError, match="no architecture 'resnet'"):
        make_module("resnet", width=8, num_classes=10, in_channels=3)
