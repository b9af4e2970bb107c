from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from modelaudit.component import CleanData, Component
from modelaudit.preprocessing import PRESETS
from modelaudit.suspect import Suspect

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandingConfig:
    """One thing to set."""

    steps: int = 3


class Demanding(Component[DemandingConfig]):
    """Needs everything that a component can declare, and a mixture."""

    id = "demanding"
    version = "1"
    summary = "asks for much"
    reference = "none"
    config_type = DemandingConfig
    requires_batchnorm = True
    requires_labels = True
    min_images = 4
    min_classes = 5

    def _unmet_need_of_kind(self, suspect: Suspect, clean: CleanData) -> str | None:
        del suspect
        return "needs a mixture" if clean.mixture is None else None


def suspect(*, classes: int, has_batchnorm: bool) -> Suspect:
    layers = [nn.Conv2d(3, 2, 1), *([nn.BatchNorm2d(2)] if has_batchnorm else [])]
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, classes)).eval()
    return Suspect(module, preprocessing=PRESETS[0], input_size=4, num_classes=classes)


def clean(count: int) -> CleanData:
    return CleanData(
        images=torch.zeros(count, 3, 4, 4),
        labels=torch.zeros(count, dtype=torch.int64),
        has_labels=False,
        as_trained=torch.zeros(count, 3, 4, 4),
    )


def test_unmet_needs_are_named_one_by_one_the_model_first() -> None:
    component, images = Demanding(), clean(3)
    small = suspect(classes=4, has_batchnorm=True)
    mixed = replace(images, mixture=torch.zeros(1, 3, 4, 4))
    labelled = replace(mixed, has_labels=True)
    enough = replace(clean(4), has_labels=True, mixture=mixed.mixture)
    told = [
        component.unmet_need(suspect(classes=4, has_batchnorm=False), images),
        component.unmet_need(small, images),
        component.unmet_need(small, mixed),
        component.unmet_need(small, labelled),
        component.unmet_need(small, enough),
        component.unmet_need(suspect(classes=5, has_batchnorm=True), enough),
    ]
    assert told == [
        "needs BatchNorm with running statistics, the model has none",
        "needs a mixture",
        "needs labelled clean images, the clean set has no labels",
        "needs 4 clean images, got 3",
        "needs 5 classes, the model has 4",
        None,
    ]


@pytest.mark.parametrize(
    ("make", "full_id", "steps"),
    [
        (lambda: Demanding(), "demanding", 3),
        (lambda: Demanding(DemandingConfig(steps=7), variant="slow"), "demanding@slow", 7),
    ],
)
def test_configuration_and_variant_are_kept(
    make: Callable[[], Demanding], full_id: str, steps: int
) -> None:
    component = make()
    assert (component.full_id, component.config.steps) == (full_id, steps)
