from __future__ import annotations

import pytest
import torch
from torch import nn

from modelaudit.attacks.classifier import Classifier


def make(*, dtype: torch.dtype | None = None) -> Classifier:
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    module(torch.zeros(1, 1, 2, 2))
    return Classifier(module, normalise=lambda images: images - 0.5, dtype=dtype)


def test_images_are_normalised() -> None:
    classifier = make()
    images = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(classifier(images), classifier.module(images - 0.5))


def test_convolutions_run_in_the_dtype_and_logits_are_float32() -> None:
    images = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    for dtype, of_layers in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        classifier = make(dtype=dtype)
        with classifier.observing(["0"]):
            assert classifier(images).dtype == torch.float32
            assert classifier.outputs["0"].dtype == of_layers


def test_outputs_are_those_of_the_observed_layers_while_observing() -> None:
    classifier = make()
    images = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    with classifier.observing(["0", "1"]):
        classifier(images)
        assert torch.equal(classifier.outputs["1"], classifier.outputs["0"].relu())
        assert classifier.outputs["0"].requires_grad
    assert classifier.outputs == {}
    classifier(images)
    assert classifier.outputs == {}


def test_hooks_are_removed_after_an_error() -> None:
    classifier = make()
    with pytest.raises(AttributeError), classifier.observing(["0", "7"]):
        pass
    assert not any(module._forward_hooks for module in classifier.module.modules())
