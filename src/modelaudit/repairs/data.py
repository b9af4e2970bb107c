"""The clean images as repairs see them: a part to work with, a part to choose amounts on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.component import CleanData
from modelaudit.errors import ShapeError
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.scanners import CleanImages

#: Share of the images that amounts are chosen on (methods/repairs.md §0.5).
VALIDATION_FRACTION = 0.2

#: Fewest images that are divided; fewer serve as both parts.
MIN_DIVIDED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairData(CleanData):
    """Clean images for a repair.

    Attributes, beside those of `CleanData`:
        work: indices that the repair may train on or take statistics of.
        validation: indices that amounts and stops are chosen on; disjoint from `work`, except where
            there are too few images to divide.
    """

    work: Tensor
    validation: Tensor

    def __post_init__(self) -> None:
        # Not super(): a slotted dataclass is made twice, and super() would mean the first one.
        CleanData.__post_init__(self)
        count = len(self.images)
        if self.labels.shape != (count,) or len(self.as_trained) != count:
            raise ShapeError(
                f"expected labels and as_trained of {count} images, got "
                f"{tuple(self.labels.shape)} and {len(self.as_trained)}"
            )
        for name in ("work", "validation"):
            part = getattr(self, name)
            if not len(part) or int(part.min()) < 0 or int(part.max()) >= count:
                raise ShapeError(f"expected {name} to index some of {count} images")

    @property
    def is_divided(self) -> bool:
        """Whether amounts are chosen on images that the repair does not work with."""
        return not bool(torch.isin(self.validation, self.work).any())


def divide(labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Divide images into work and validation, 80 to 20, each class alike.

    Args:
        labels: ``(N,)`` int64.
        seed: the run's seed.

    Returns:
        Ascending indices of the two parts, int64. Fewer than 100 images are both.
    """
    count = len(labels)
    if count < MIN_DIVIDED:
        return torch.arange(count), torch.arange(count)
    draw = generator(seed, "repair", "divide")
    validation: list[int] = []
    seen = 0
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=draw)]
        # Rounding the running total keeps a fifth overall where classes have few images.
        before = round(VALIDATION_FRACTION * seen)
        seen += len(members)
        validation += members[: round(VALIDATION_FRACTION * seen) - before].tolist()
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[validation] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def repair_data(clean: CleanImages, *, seed: int) -> RepairData:
    """Return the clean set of a scan as repairs take it.

    Args:
        clean: the clean set; its division into search and judge plays no part.
        seed: the run's seed, which draws the division.
    """
    work, validation = divide(clean.labels, seed=seed)
    return RepairData(
        images=clean.images,
        labels=clean.labels,
        has_labels=clean.has_labels,
        work=work,
        validation=validation,
        as_trained=clean.as_trained,
        mixture=clean.mixture,
    )
