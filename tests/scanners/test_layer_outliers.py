from __future__ import annotations

import math

import pytest
import torch

from modelaudit.results import Finding
from modelaudit.scanners._layer_outliers import (
    largest_possible_z,
    observe,
    official_prune_edits,
    paper_u,
    standardised_layer,
)
from tests.helpers import models
from tests.helpers.planted import clean_set, context_of


def test_z_has_the_unbiased_deviation_by_hand() -> None:
    # Mean 3, squares 4 + 1 + 0 + 1 + 4 = 10 over 4.
    layer = standardised_layer("norm", torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double())
    assert layer.z.tolist() == pytest.approx([x / math.sqrt(2.5) for x in (-2, -1, 0, 1, 2)])


def test_the_low_end_can_be_the_suspicious_one() -> None:
    values = torch.tensor([1.0, 2.0, 6.0]).double()
    low = standardised_layer("norm", values, is_low_suspicious=True)
    assert torch.equal(low.z, -standardised_layer("norm", values).z)
    assert torch.equal(low.values, values)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_one_undefined_channel_switches_its_layer_off(bad: float) -> None:
    values = torch.tensor([0.1] * 30 + [9.0, bad]).double()
    assert not bool((standardised_layer("norm", values).z > 3).any())


def test_no_channel_of_a_narrow_layer_can_be_over() -> None:
    for channels in (8, 10, 11, 17, 18):
        values = torch.zeros(channels).double()
        values[0] = 1.0
        z = float(standardised_layer("norm", values).z[0])
        assert z == pytest.approx(largest_possible_z(channels))
    assert largest_possible_z(10) < 3 < largest_possible_z(11)
    assert largest_possible_z(17) < 4 < largest_possible_z(18)


@pytest.mark.parametrize(("size", "u"), [(32, 3.0), (40, 3.0), (64, 4.0), (224, 4.0)])
def test_u_follows_the_input_size(size: int, u: float) -> None:
    assert paper_u(size) == u


def test_official_pruning_leaves_the_constant_beta() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    norm = suspect.module.get_submodule("norm1")
    seen: list[torch.Tensor] = []
    handle = norm.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with suspect.borrowed(), suspect.edited(official_prune_edits(suspect, [("norm1", 2)])):
        suspect.predict(models.images(3))
    handle.remove()
    beta = float(norm.get_parameter("bias").detach()[2])
    assert beta != 0
    assert torch.allclose(seen[0][:, 2], torch.tensor(beta), atol=1e-6)
    assert float(seen[0][:, 1].std()) > 0


def test_channels_over_u_are_counted_over_all_layers() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    clean = clean_set(suspect, models.images(20))
    first, second = torch.zeros(8).double(), torch.zeros(16).double()
    first[0], second[3], second[7] = 1.0, 5.0, 5.0
    layers = [standardised_layer("norm1", first), standardised_layer("norm2", second)]
    with suspect.borrowed():
        seen = observe(suspect, clean, context_of(suspect, clean), layers, u=2.0, evidence={})
    # One of eight: 7/√8 = 2.47; two of sixteen: √(14/2)·√(15/16) = 2.56.
    assert seen.score == 3.0
    assert seen.finding is Finding.SUSPICIOUS
    assert seen.threshold == 1.0
    assert [row[:2] for row in seen.evidence["channels"]] == [  # type: ignore[union-attr, index]  # rows
        ["norm2", 3],
        ["norm2", 7],
        ["norm1", 0],
    ]
    assert seen.evidence["largest_z"] == pytest.approx(math.sqrt(7 * 15 / 16))
    assert seen.evidence["all_channels"] == 24


def test_nothing_over_u_is_no_finding_and_costs_no_pass() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    clean = clean_set(suspect, models.images(20))
    context = context_of(suspect, clean)
    before = suspect.passes.forward
    layers = [standardised_layer("norm2", torch.arange(16).double())]
    with suspect.borrowed():
        seen = observe(suspect, clean, context, layers, u=3.0, evidence={})
    assert (seen.finding, seen.score) == (Finding.NONE, 0.0)
    assert seen.evidence["pruned_accuracy_drop"] == 0.0
    assert suspect.passes.forward == before


def test_a_network_too_narrow_for_the_rule_has_no_power() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    clean = clean_set(suspect, models.images(20))
    layers = [standardised_layer("norm1", torch.arange(8).double())]
    with suspect.borrowed():
        seen = observe(suspect, clean, context_of(suspect, clean), layers, u=3.0, evidence={})
    assert seen.finding is Finding.NO_POWER
    assert any("no layer is wide enough" in note for note in seen.notes)
