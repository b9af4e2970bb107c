"""Validation images seen several times."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from modelaudit.repairs._augment import Augmentation, augment
from modelaudit.repairs._views import VIEWS, choose_views, view_accuracy, view_logits, views
from modelaudit.seeds import generator
from tests.helpers.models import suspect_of
from tests.helpers.training import context_of, data_of


class _Corner(nn.Module):
    """Gives its images' first pixels as logits: what is cropped is something else to it."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(4.0))

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(N, 3)``."""
        return self.factor * images.flatten(2)[..., 0]


class _Mean(_Corner):
    """Gives the mean of each channel."""

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(N, 3)``."""
        return self.factor * images.mean((2, 3))


IMAGES = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = data_of(IMAGES, IMAGES[:, :, 0, 0].argmax(1))
BORNE = Augmentation(padding=1, flip=True)


def test_each_image_is_seen_cropped_and_mirrored() -> None:
    model, context = suspect_of(_Corner(), classes=3), context_of(batch_size=7)
    logits, labels = view_logits(model, DATA, context, BORNE)
    validation = DATA.validation
    assert model.passes.forward == VIEWS * len(validation) == len(logits)
    assert torch.equal(labels, DATA.labels[validation.repeat(VIEWS)])
    draws = generator(context.seed, "repair", "views")
    seen = torch.cat([augment(IMAGES[validation], BORNE, generator=draws) for _ in range(VIEWS)])
    # Normalised by a mean and deviation of a half.
    torch.testing.assert_close(logits, (4.0 * (2 * seen[..., 0, 0] - 1)).double())
    accuracy = view_accuracy(model, DATA, context, BORNE)
    assert 0.0 < accuracy < 1.0
    right = seen[..., 0, 0].argmax(1) == labels
    assert accuracy == pytest.approx(float(right.double().mean()))


def test_what_is_only_mirrored_is_seen_twice() -> None:
    model, mirrored = suspect_of(_Corner(), classes=3), Augmentation(flip=True)
    logits, _ = view_logits(model, DATA, context_of(), mirrored)
    plain, other = IMAGES[DATA.validation], IMAGES[DATA.validation].flip(-1)
    seen = torch.cat([plain, other])[..., 0, 0]
    torch.testing.assert_close(logits, (4.0 * (2 * seen - 1)).double())


@pytest.mark.parametrize("size", [7, 256])
def test_networks_are_asked_about_the_same_views_whatever_the_batch(size: int) -> None:
    one, two = (
        view_logits(suspect_of(_Corner(), classes=3), DATA, context, BORNE)[0]
        for context in (context_of(), context_of(batch_size=size))
    )
    torch.testing.assert_close(one, two)
    assert len({tuple(row) for row in one.tolist()}) > len(DATA.validation)


@pytest.mark.parametrize(
    ("seen", "count"),
    [
        (Augmentation(), 1),
        (Augmentation(padding=1), VIEWS),
        (Augmentation(flip=True), 2),
        (BORNE, VIEWS),
    ],
)
def test_views_are_counted(seen: Augmentation, count: int) -> None:
    assert views(seen) == count
    logits, labels = view_logits(suspect_of(_Corner(), classes=3), DATA, context_of(), seen)
    assert len(logits) == len(labels) == count * len(DATA.validation)


def test_images_are_seen_as_the_network_bears_them() -> None:
    mean = data_of(IMAGES, IMAGES.mean((2, 3)).argmax(1))
    flipped = Augmentation(flip=True, hole=3)
    bears = suspect_of(_Mean(), classes=3)
    assert choose_views(bears, mean, context_of(), flipped) == Augmentation(flip=True)
    # What learns to bear crops while it is repaired would hide what it loses.
    loses = suspect_of(_Corner(), classes=3)
    assert choose_views(loses, DATA, context_of(), BORNE) == Augmentation()
    assert loses.passes.forward == (VIEWS + 1) * len(DATA.validation)
    assert choose_views(loses, DATA, context_of(), Augmentation(hole=3)) == Augmentation()
    assert loses.passes.forward == (VIEWS + 1) * len(DATA.validation)
