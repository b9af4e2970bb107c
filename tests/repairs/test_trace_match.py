"""How far a stand-in's displacement lies from that of the traces."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.repairs.stand_ins import Patch
from modelaudit.repairs.trace_match import TraceMatch, traced_shifts
from tests.helpers.models import images
from tests.helpers.planted import contaminate, fit_statistics, pattern_images, stamped
from tests.helpers.training import backdoored, tiny_suspect

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.scanners._divergences import Divergences
    from modelaudit.suspect import Suspect


def layer_means(suspect: Suspect, pictures: Tensor) -> dict[str, Tensor]:
    """Return each BatchNorm layer's mean input, one channel at a time."""
    seen: dict[str, Tensor] = {}
    sites = [site.name for site in suspect.sites if site.has_statistics]
    handles = []
    for name in sites:

        def keep(_module: object, inputs: tuple[Tensor, ...], name: str = name) -> None:
            seen[name] = inputs[0].detach().double()

        handles.append(suspect.module.get_submodule(name).register_forward_pre_hook(keep))
    with torch.no_grad():
        suspect.logits(pictures)
    for handle in handles:
        handle.remove()
    return {
        name: torch.tensor([float(x[:, c].mean()) for c in range(x.shape[1])])
        for name, x in seen.items()
    }


def by_hand(suspect: Suspect, found: Divergences, before: Tensor, after: Tensor) -> float:
    """Return the mean over layers of 1 - cos, number by number."""
    old, new = layer_means(suspect, before), layer_means(suspect, after)
    distances = []
    for name in old:
        rows = [i for i, (layer, _) in enumerate(found.neurons) if layer == name]
        moved = [
            (float(new[name][c]) - float(old[name][c])) / float(found.deviation[row])
            for c, row in enumerate(rows)
        ]
        wanted = [float(found.shift[row]) for row in rows]
        product = sum(a * b for a, b in zip(moved, wanted, strict=True))
        lengths = math.hypot(*moved) * math.hypot(*wanted)
        distances.append(1 - product / lengths)
    return sum(distances) / len(distances)


def distance(match: TraceMatch, suspect: Suspect, shown: Tensor, rows: Tensor) -> float:
    with match.watching(), torch.no_grad():
        suspect.logits(shown)
        return float(match.loss(rows))


def test_the_loss_is_the_mean_angle_between_displacements() -> None:
    suspect, pictures = tiny_suspect(), images(60)
    contaminate(suspect, "norm2", 3, rate=0.1, shift=4.0)
    found = traced_shifts(suspect, pictures, seed=0, batch_size=16)
    rows = torch.tensor([4, 9, 20, 41])
    shown = (pictures[rows] * 0.5 + 0.3).clamp(0, 1)
    for weight in (1.0, 5.0):
        match = TraceMatch(suspect, found, pictures, weight=weight, batch_size=16)
        wanted = weight * by_hand(suspect, found, pictures[rows], shown)
        assert distance(match, suspect, shown, rows) == pytest.approx(wanted, abs=1e-4)


def test_traces_on_the_other_side_turn_every_angle() -> None:
    suspect, pictures = tiny_suspect(), images(60)
    contaminate(suspect, "norm2", 3, rate=0.1, shift=4.0)
    found = traced_shifts(suspect, pictures, seed=0, batch_size=64)
    rows = torch.arange(8)
    shown = 1 - pictures[rows]
    one, other = (
        distance(
            TraceMatch(suspect, found, pictures, weight=1.0, is_opposite=is_opposite),
            suspect,
            shown,
            rows,
        )
        for is_opposite in (False, True)
    )
    assert one + other == pytest.approx(2.0, abs=1e-4)


def test_a_layer_without_traces_says_nothing() -> None:
    suspect, pictures = tiny_suspect(), images(60)
    fit_statistics(suspect, pictures)
    found = traced_shifts(suspect, pictures, seed=0, batch_size=64)
    first = torch.tensor([name == "norm1" for name, _ in found.neurons])
    found = replace(found, shift=torch.where(first, 0.0, torch.ones_like(found.shift)))
    match = TraceMatch(suspect, found, pictures, weight=1.0)
    rows = torch.arange(8)
    shown = 1 - pictures[rows]
    only = replace(
        found,
        neurons=tuple(n for n in found.neurons if n[0] == "norm2"),
        shift=found.shift[~first],
        deviation=found.deviation[~first],
    )
    alone = TraceMatch(suspect, only, pictures, weight=1.0)
    assert distance(match, suspect, shown, rows) == distance(alone, suspect, shown, rows)


def test_the_trigger_lies_nearer_to_the_traces_than_less_light_does() -> None:
    suspect = backdoored()
    pictures, _ = pattern_images(300, 12)
    found = traced_shifts(suspect, pictures, seed=0, batch_size=100)
    match = TraceMatch(suspect, found, pictures, weight=1.0)
    rows = torch.arange(100)
    real = distance(match, suspect, stamped(pictures[rows]), rows)
    darker = distance(match, suspect, pictures[rows] * 0.9, rows)
    assert real < 0.6 * darker


def test_agreement_is_the_mean_cos_over_all_images() -> None:
    suspect, pictures = tiny_suspect(), images(60)
    contaminate(suspect, "norm2", 3, rate=0.1, shift=4.0)
    found = traced_shifts(suspect, pictures, seed=0, batch_size=16)
    match = TraceMatch(suspect, found, pictures, weight=5.0, batch_size=16)
    size = pictures.shape[-1]
    grey = Patch(mask=torch.full((1, 1, size, size), 0.4), pattern=torch.ones(1, 3, size, size))
    wanted = 1 - by_hand(suspect, found, pictures, grey.put_on(pictures))
    assert match.agreement(pictures, grey.put_on, batch_size=16) == pytest.approx(wanted, abs=1e-4)


def test_hooks_go_on_every_exit() -> None:
    suspect, pictures = tiny_suspect(), images(40)
    contaminate(suspect, "norm2", 3, rate=0.1, shift=4.0)
    found = traced_shifts(suspect, pictures, seed=0, batch_size=64)
    match = TraceMatch(suspect, found, pictures, weight=1.0)
    with pytest.raises(KeyboardInterrupt), match.watching():
        raise KeyboardInterrupt
    assert not any(m._forward_pre_hooks for m in suspect.module.modules())
