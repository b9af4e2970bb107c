"""Random crops and mirror images, and whether a model is asked about them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from modelaudit.repairs._augment import Augmentation, augment, choose_augmentation
from modelaudit.suspect import Suspect
from tests.helpers.models import PLAIN_PIXELS, images, suspect_of


def draws(seed: int = 0) -> torch.Generator:
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


def test_nothing_asked_changes_nothing() -> None:
    batch = images(3)
    assert torch.equal(augment(batch, Augmentation(), generator=draws()), batch)


def test_every_image_is_a_window_of_its_padded_self() -> None:
    batch = images(40)
    cut = augment(batch, Augmentation(padding=1), generator=draws())
    padded = nn.functional.pad(batch, (1, 1, 1, 1))
    places = set()
    for one, source in zip(cut, padded, strict=True):
        found = [
            (y, x)
            for y in range(3)
            for x in range(3)
            if torch.equal(one, source[:, y : y + 8, x : x + 8])
        ]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) == 9


def test_half_of_the_images_are_mirrored() -> None:
    batch = images(200)
    turned = augment(batch, Augmentation(flip=True), generator=draws())
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(turned, batch, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(turned, batch, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 70 < sum(mirrored) < 130


def test_mirroring_moves_no_window() -> None:
    batch = images(50)
    plain = augment(batch, Augmentation(padding=2), generator=draws())
    turned = augment(batch, Augmentation(padding=2, flip=True), generator=draws())
    for a, b in zip(plain, turned, strict=True):
        assert torch.equal(a, b) or torch.equal(a.flip(-1), b)


def test_holes_have_their_size_and_reach_over_the_border() -> None:
    cut = augment(torch.ones(400, 3, 8, 8), Augmentation(hole=2), generator=draws())
    sizes = (cut[:, 0] == 0).flatten(1).sum(1)
    assert set(sizes.tolist()) == {1, 2, 4}
    assert float((sizes == 4).double().mean()) == pytest.approx((7 / 8) ** 2, abs=0.08)
    assert torch.equal(cut[:, 0], cut[:, 2])


def test_same_seed_same_images() -> None:
    batch, what = images(9), Augmentation(padding=2, flip=True, hole=3)
    one, other = (augment(batch, what, generator=draws(4)) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, augment(batch, what, generator=draws(5)))


class _Sides(nn.Module):
    """Answers 1 where the right half is brighter than the left, or, blind, by the mean."""

    def __init__(self, *, is_blind: bool) -> None:
        super().__init__()
        self.is_blind = is_blind
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        middle = x.mean((1, 2, 3)) - 0.5
        if not self.is_blind:
            half = x.shape[-1] // 2
            middle = x[..., half:].mean((1, 2, 3)) - x[..., :half].mean((1, 2, 3))
        out: Tensor = self.head(middle.unsqueeze(1))
        return out


def ask(
    *, is_blind: bool, crop: bool | None = None, flip: bool | None = None
) -> tuple[Augmentation, Suspect]:
    """Return the choice for a net that minds mirroring or not, and the net."""
    suspect = suspect_of(_Sides(is_blind=is_blind).eval(), size=16, classes=2)
    pictures = torch.full((40, 3, 16, 16), 0.3)
    pictures[::2, :, :, 8:] = 0.9
    pictures[1::2, :, :, :8] = 0.9
    labels = suspect.predict(pictures)
    suspect.passes.forward = 0
    choice = choose_augmentation(
        suspect, pictures, labels, crop=crop, flip=flip, generator=draws(), batch_size=16
    )
    return choice, suspect


def test_a_model_that_minds_is_not_given_mirror_images() -> None:
    choice, suspect = ask(is_blind=False)
    assert choice == Augmentation(padding=2, flip=False)
    assert suspect.passes.forward == 3 * 40


def test_a_model_that_does_not_mind_is() -> None:
    assert ask(is_blind=True)[0].flip


def test_what_the_user_says_is_not_asked() -> None:
    choice, suspect = ask(is_blind=False, crop=False, flip=True)
    assert choice == Augmentation(padding=0, flip=True)
    assert suspect.passes.forward == 0


def test_large_inputs_are_not_padded() -> None:
    suspect = Suspect(
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval(),
        preprocessing=PLAIN_PIXELS,
        input_size=160,
        num_classes=2,
    )
    pictures = images(4, size=160)
    for crop in (None, True):
        choice = choose_augmentation(
            suspect,
            pictures,
            suspect.predict(pictures),
            crop=crop,
            flip=False,
            generator=draws(),
            batch_size=4,
        )
        assert choice.padding == 0
