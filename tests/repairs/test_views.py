"""Validation images seen several times."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from modelaudit.repairs._augment import Augmentation, augment
from modelaudit.repairs._views import VIEWS, view_accuracy, view_logits, views
from modelaudit.seeds import generator
from tests.helpers.models import suspect_of
from tests.helpers.training import context_of, data_of


class _Corner(nn.Module):
    """Gives its images' first pixels as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(4.0))

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(N, 3)``."""
        return self.factor * images.flatten(2)[..., 0]


def test_each_image_is_seen_as_the_network_bears_it() -> None:
    images = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = data_of(images, images[:, :, 0, 0].argmax(1))
    model = suspect_of(_Corner(), classes=3)
    borne, context = Augmentation(padding=1, flip=True), context_of(batch_size=7)
    logits, labels = view_logits(model, data, context, borne)
    rows = data.validation.repeat(VIEWS)
    assert model.passes.forward == len(rows) == len(logits)
    assert torch.equal(labels, data.labels[rows])
    draws = generator(context.seed, "repair", "views")
    seen = torch.cat([augment(images[part], borne, generator=draws) for part in rows.split(7)])
    # Normalised by a mean and deviation of a half.
    torch.testing.assert_close(logits, (4.0 * (2 * seen[..., 0, 0] - 1)).double())
    accuracy = view_accuracy(model, data, context, borne)
    assert 0.0 < accuracy < 1.0
    right = seen[..., 0, 0].argmax(1) == labels
    assert accuracy == pytest.approx(float(right.double().mean()))


def test_networks_are_asked_about_the_same_views() -> None:
    images = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = data_of(images, images[:, :, 0, 0].argmax(1))
    borne, context = Augmentation(padding=2), context_of()
    one, two = (
        view_logits(suspect_of(_Corner(), classes=3), data, context, borne)[0] for _ in range(2)
    )
    assert torch.equal(one, two)
    assert len({tuple(row) for row in one.tolist()}) > len(data.validation)


@pytest.mark.parametrize(
    ("borne", "count"),
    [
        (Augmentation(), 1),
        (Augmentation(hole=3), 1),
        (Augmentation(padding=1), VIEWS),
        (Augmentation(flip=True), VIEWS),
    ],
)
def test_what_bears_nothing_is_asked_once(borne: Augmentation, count: int) -> None:
    assert views(borne) == count
