"""Where a scan says that images are led: what repairs may aim at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit.errors import ConfigError
from modelaudit.results import Finding, Pattern

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.results import ScannerResult
    from modelaudit.suspect import Suspect

#: (layer, channel, amount added to the layer's input) of each channel that is pushed
Push = tuple[tuple[str, int, float], ...]

#: entry of a label map for a class that is led nowhere
STAYS = -1


def accusing(findings: Sequence[ScannerResult]) -> tuple[ScannerResult, ...]:
    """Return the findings that are suspicious or strong."""
    return tuple(f for f in findings if f.finding in {Finding.SUSPICIOUS, Finding.STRONG})


def named_targets(findings: Sequence[ScannerResult]) -> tuple[int, ...]:
    """Return the classes that scanners accuse of being an all-to-one target, ascending.

    An all-to-all backdoor has every class for a target: what aims at one of them would miss the
    others.
    """
    found = accusing(findings)
    if any(f.pattern is Pattern.ALL_TO_ALL for f in found):
        return ()
    return tuple(sorted({target for f in found for target in f.target_labels}))


def label_maps(findings: Sequence[ScannerResult], num_classes: int) -> tuple[Tensor, ...]:
    """Return where a trigger would lead each class, one map for each backdoor that is suspected.

    Args:
        findings: of a scan.
        num_classes: K.

    Returns:
        Maps of shape ``(K,)``, int64; `STAYS` for a class that is led nowhere. The arrows of an
        all-to-all finding where there are any, else one for each target that an all-to-one finding
        names.

    Raises:
        ConfigError: a finding names what is no output of this model, as that of another model does.
    """
    found = accusing(findings)
    for result in found:
        arrows = result.evidence.get("arrows")
        if result.pattern is Pattern.ALL_TO_ALL and isinstance(arrows, list | tuple):
            led = torch.tensor([int(a) for a in arrows], dtype=torch.int64)  # type: ignore[arg-type]
            if len(led) != num_classes or bool(((led < STAYS) | (led >= num_classes)).any()):
                raise ConfigError(
                    f"expected arrows of {num_classes} outputs from {result.id}, got {arrows!r}"
                )
            return (led,)
    single = [f for f in found if f.pattern is not Pattern.ALL_TO_ALL]
    return tuple(map_to(target, num_classes) for target in named_targets(single))


def push_of(finding: ScannerResult) -> Push:
    """Return ``evidence["push"]`` of a finding; empty where it has none."""
    rows = finding.evidence.get("push")
    if not isinstance(rows, list | tuple):
        return ()
    return tuple((str(row[0]), int(row[1]), float(row[2])) for row in rows)  # type: ignore[index, arg-type]


def leading_pushes(findings: Sequence[ScannerResult], model: Suspect) -> dict[str, Push]:
    """Return the pushes that lead images somewhere, by the id of the scanner that accuses by them.

    Args:
        findings: of a scan. Not heard are uncalibrated ones, and those whose own controls lead to
            the same label.
        model: whose channels they are.

    Raises:
        ConfigError: a push is of a channel that this model has not, as that of another model is.
    """
    channels = {site.name: site.channels for site in model.sites}
    found = {}
    for result in accusing(findings):
        push = push_of(result)
        is_leading = bool(result.target_labels) or result.pattern is Pattern.ALL_TO_ALL
        if not (push and is_leading and result.is_calibrated) or result.is_refuted:
            continue
        for name, index, _ in push:
            if not 0 <= index < channels.get(name, 0):
                raise ConfigError(
                    f"expected pushes of this model's channels from {result.id}, got channel "
                    f"{index} of {name!r}"
                )
        found[result.id] = push
    return found


def is_all_to_all(findings: Sequence[ScannerResult]) -> bool:
    """Return whether a finding that accuses says all-to-all."""
    return any(f.pattern is Pattern.ALL_TO_ALL for f in accusing(findings))


def map_to(target: int, num_classes: int) -> Tensor:
    """Return the map of an all-to-one backdoor: every class to `target`, which stays itself.

    Raises:
        ConfigError: `target` is no output.
    """
    if not 0 <= target < num_classes:
        raise ConfigError(f"target must be one of the outputs 0 to {num_classes - 1}, got {target}")
    led = torch.full((num_classes,), target, dtype=torch.int64)
    led[target] = STAYS
    return led


def target_of(goals: Tensor) -> int | None:
    """Return the one class that a map leads to; None where it leads to several, or nowhere."""
    led = goals[goals != STAYS].unique().tolist()
    return int(led[0]) if len(led) == 1 else None


def are_traces_opposite(findings: Sequence[ScannerResult], goals: Tensor) -> bool:
    """Return whether the traces lie on the other side of the clean means.

    A scanner of statistics says so by a negative share of poisoned images: it had to push the other
    way to lead images anywhere. Heard are those that name this very place, or else those whose own
    controls confirm where they push.

    Args:
        findings: of a scan.
        goals: the place, a map as in `label_maps`.
    """
    target = target_of(goals)
    pushing = [f for f in accusing(findings) if f.is_calibrated and _share(f) is not None]
    naming = [
        f
        for f in pushing
        if (target in f.target_labels if target is not None else f.pattern is Pattern.ALL_TO_ALL)
    ]
    heard = naming or [f for f in pushing if f.is_confirmed]
    return any((_share(finding) or 0.0) < 0 for finding in heard)


def _share(finding: ScannerResult) -> float | None:
    share = finding.evidence.get("poisoned_share")
    return share if isinstance(share, float) else None
