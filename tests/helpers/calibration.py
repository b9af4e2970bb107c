"""Scanner results, scanned models and populations with numbers that one can follow by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelaudit.calibration import Circumstances, ScannedModel, build
from modelaudit.results import Finding, ScannerResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.calibration import Population
    from modelaudit.results import ScanOutcome

CIFAR = Circumstances(
    architecture="cifar_resnet18 (depth 18, width 16)",
    images=500,
    input_size=32,
    classes=10,
    has_batchnorm=True,
)
FAMILIES = {"ban": "parameter_noise", "mbns": "bn_statistics", "mm_bd": "margin"}
#: Ten classes, so that a maximum of t statistics knows how many there were.
PER_CLASS = (1.0,) * 10


def result(id_: str, score: float | None, **changes: Any) -> ScannerResult:
    """Return a scanner's result; its finding is none unless said otherwise."""
    given: dict[str, Any] = {
        "version": "1",
        "family": FAMILIES.get(id_, f"family of {id_}"),
        "finding": Finding.NONE,
        "sees_all_to_all": id_ == "mbns",
        "per_class": PER_CLASS,
        "config": {"steps": 3},
    }
    return ScannerResult(id=id_, score=score, **(given | changes))


def outcomes(index: int = 0) -> tuple[ScannerResult, ...]:
    """Return the results of one clean model; the index moves every score a little."""
    turn = (index * 7) % 20
    return (
        result("ban", 0.004 + 0.001 * turn),
        result("mbns", 3.0 + 0.1 * ((index * 3) % 20)),
        result("mm_bd", 1.0 + 0.05 * ((index * 11) % 20)),
    )


def attacked_outcomes() -> tuple[ScannerResult, ...]:
    """Return the results of a model with a plain backdoor to class 3."""
    strong: dict[str, Any] = {"finding": Finding.STRONG, "target_labels": (3,)}
    return (
        result("ban", 0.2, **strong),
        result("mbns", 300.0, **strong),
        result("mm_bd", 8.0, **strong),
    )


def model(id_: str, found: Sequence[ScanOutcome], **changes: Any) -> ScannedModel:
    """Return a scanned model of CIFAR-10."""
    plain = ScannedModel(
        id=id_,
        circumstances=CIFAR,
        outcomes=tuple(found),
        dataset="cifar10",
        clean_set="held-out",
        checkpoint_sha256=id_,
        clean_set_sha256="c",
        hardware="a processor, cpu",
        versions={"torch": "2.15.0"},
    )
    return replace(plain, **changes)


def clean_models(count: int = 20, **changes: Any) -> list[ScannedModel]:
    """Return clean models whose scores differ a little."""
    return [model(f"clean_{i:02}", outcomes(i), **changes) for i in range(count)]


def attacked_model(id_: str = "attacked", **changes: Any) -> ScannedModel:
    """Return an attacked model whose attack works."""
    truth = {"attack": "badnets", "label_map": "one", "target": 3, "gate_passed": True}
    return model(id_, attacked_outcomes(), **(truth | changes))


def population(count: int = 20) -> Population:
    """Return a population of clean models and one attacked one."""
    (built,) = build([*clean_models(count), attacked_model()], id_="small").populations
    return built
