from __future__ import annotations

from typing import Any

import pytest
import torch

from modelaudit.attacks.label_maps import AllToAll, AllToOne, CleanLabel
from modelaudit.attacks.plan import PoisonPlan
from modelaudit.errors import ConfigError

LABELS = torch.arange(1000) % 10


def test_counts_are_the_floor_of_the_share_of_eligible_images() -> None:
    plan = PoisonPlan(label_map=AllToOne(target=3), rate=0.0511, cover_rate=0.0522)
    poison, cover = plan.draw(LABELS)
    assert (len(poison), len(cover)) == (45, 46)


def test_rounding_errors_lose_no_image() -> None:
    poison, _ = PoisonPlan(label_map=AllToAll(num_classes=10), rate=0.29).draw(LABELS[:100])
    assert len(poison) == 29


def test_all_to_one_never_selects_the_target_class() -> None:
    poison, cover = PoisonPlan(label_map=AllToOne(target=3), rate=0.6, cover_rate=0.4).draw(LABELS)
    assert len(poison) + len(cover) == 900
    assert not (LABELS[torch.cat([poison, cover])] == 3).any()


def test_rate_of_the_whole_set_includes_the_target_class() -> None:
    plan = PoisonPlan(label_map=AllToOne(target=3), rate=0.5, base="all")
    poison, _ = plan.draw(LABELS)
    assert len(poison) == 500
    assert (LABELS[poison] == 3).any()


def test_clean_label_selects_only_the_target_class() -> None:
    poison, _ = PoisonPlan(label_map=CleanLabel(target=3), rate=0.8).draw(LABELS)
    assert LABELS[poison].tolist() == [3] * 80


def test_choices_are_disjoint_sorted_and_of_the_seed() -> None:
    plan = PoisonPlan(label_map=AllToAll(num_classes=10), rate=0.1, cover_rate=0.2, seed=1)
    poison, cover = plan.draw(LABELS)
    assert not set(poison.tolist()) & set(cover.tolist())
    assert torch.equal(poison, poison.sort().values)
    assert torch.equal(cover, cover.sort().values)
    again = PoisonPlan(label_map=AllToAll(num_classes=10), rate=0.1, cover_rate=0.2, seed=1)
    other = PoisonPlan(label_map=AllToAll(num_classes=10), rate=0.1, cover_rate=0.2, seed=2)
    assert torch.equal(again.draw(LABELS)[0], poison)
    assert not torch.equal(other.draw(LABELS)[0], poison)


@pytest.mark.parametrize(("rate", "cover_rate"), [(0.0, 0.0), (1.1, 0.0), (0.5, 0.6), (0.5, -0.1)])
def test_rates_out_of_range_raise(rate: float, cover_rate: float) -> None:
    with pytest.raises(ConfigError, match="rate"):
        PoisonPlan(label_map=AllToOne(target=0), rate=rate, cover_rate=cover_rate)


def test_rate_below_one_image_raises() -> None:
    with pytest.raises(ConfigError, match="selects none"):
        PoisonPlan(label_map=AllToOne(target=0), rate=0.001).draw(LABELS[:20])


def test_per_batch_plan_takes_the_first_eligible_images() -> None:
    plan = PoisonPlan(
        label_map=AllToOne(target=0), rate=0.2, cover_rate=0.3, granularity="per_batch"
    )
    labels = torch.tensor([0, 1, 2, 0, 3, 4, 5, 6, 7, 8])
    is_poison, is_cover = plan.draw_batch(labels, generator=torch.Generator())
    assert is_poison.nonzero().flatten().tolist() == [1, 2]
    assert is_cover.nonzero().flatten().tolist() == [4, 5, 6]


def test_per_access_plan_draws_anew_at_its_rate() -> None:
    plan = PoisonPlan(
        label_map=AllToOne(target=0), rate=0.3, cover_rate=0.2, granularity="per_access"
    )
    generator = torch.Generator().manual_seed(0)
    first, cover = plan.draw_batch(LABELS, generator=generator)
    second, _ = plan.draw_batch(LABELS, generator=generator)
    assert not torch.equal(first, second)
    assert not (first & cover).any()
    assert not (LABELS[first] == 0).any()
    assert abs(int(first.sum()) - 270) < 50
    assert abs(int(cover.sum()) - 180) < 50


def test_counts_of_a_static_plan_are_those_of_its_choice() -> None:
    plan = PoisonPlan(label_map=AllToOne(target=3), rate=0.1, cover_rate=0.2)
    assert plan.counts(LABELS, batch_size=64) == (90, 180)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 15 whole batches of 64 images
        ({"granularity": "per_batch", "base": "all"}, (15 * 6, 15 * 12)),
        ({"granularity": "per_batch"}, (15 * 6, 15 * 12)),
        # nine tenths of 960 images are eligible
        ({"granularity": "per_access"}, (86, 173)),
        ({"granularity": "per_batch", "rate": 1.0, "cover_rate": 0.0}, (864, 0)),
        ({"granularity": "per_batch", "rate": 0.75, "cover_rate": 0.25}, (720, 144)),
    ],
)
def test_counts_of_what_is_drawn_anew_are_those_of_an_epoch(
    options: dict[str, Any], expected: tuple[int, int]
) -> None:
    values = {"label_map": AllToOne(target=3), "rate": 0.1, "cover_rate": 0.2} | options
    assert PoisonPlan(**values).counts(LABELS, batch_size=64) == expected
