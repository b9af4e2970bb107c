"""What repairs may aim at."""

from __future__ import annotations

import pytest

from modelaudit.errors import ConfigError
from modelaudit.repairs.targets import (
    STAYS,
    is_all_to_all,
    label_maps,
    map_to,
    named_targets,
)
from modelaudit.results import Finding, Pattern
from tests.helpers.training import finding_of

FINDINGS = (
    finding_of(Finding.STRONG, (3,)),
    finding_of(Finding.SUSPICIOUS, (1, 3), None),
    finding_of(Finding.NONE, (2,)),
)
ALL_TO_ALL = finding_of(Finding.STRONG, (0, 1, 2, 3), Pattern.ALL_TO_ALL, arrows=(1, 2, -1, 0))


def test_targets_are_those_of_accusing_scanners() -> None:
    assert named_targets(FINDINGS) == (1, 3)
    assert named_targets(()) == ()
    assert named_targets([*FINDINGS, ALL_TO_ALL]) == ()


def test_each_target_has_a_map_and_stays_itself() -> None:
    assert [m.tolist() for m in label_maps(FINDINGS, 4)] == [[1, STAYS, 1, 1], [3, 3, 3, STAYS]]
    assert map_to(0, 3).tolist() == [STAYS, 0, 0]
    assert label_maps((), 4) == ()


def test_an_all_to_all_finding_gives_its_arrows_alone() -> None:
    assert [m.tolist() for m in label_maps([*FINDINGS, ALL_TO_ALL], 4)] == [[1, 2, STAYS, 0]]


def test_an_all_to_all_finding_without_arrows_leaves_what_others_name() -> None:
    silent = finding_of(Finding.STRONG, (0, 1, 2, 3), Pattern.ALL_TO_ALL)
    assert label_maps([silent], 4) == ()
    assert is_all_to_all([silent])
    assert [m.tolist() for m in label_maps([silent, FINDINGS[0]], 4)] == [[3, 3, 3, STAYS]]
    assert not is_all_to_all(FINDINGS)


@pytest.mark.parametrize("arrows", [(1, 2, 3), (1, 2, 4, 0), (1, 2, -2, 0)])
def test_arrows_of_another_model_are_refused(arrows: tuple[int, ...]) -> None:
    finding = finding_of(Finding.STRONG, (), Pattern.ALL_TO_ALL, arrows=arrows)
    with pytest.raises(ConfigError, match="expected arrows of 4 outputs"):
        label_maps([finding], 4)


@pytest.mark.parametrize("target", [-1, 4])
def test_a_target_that_is_no_output_is_refused(target: int) -> None:
    with pytest.raises(ConfigError, match="one of the outputs 0 to 3"):
        map_to(target, 4)
