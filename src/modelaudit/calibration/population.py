"""A reference population: models that somebody vouches for, and what the scanners said of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from modelaudit.config import require_range
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from modelaudit.calibration.circumstances import Bucket
    from modelaudit.calibration.transforms import Transform
    from modelaudit.results import Json

#: Fewest clean models of which a spread can be told at all.
MIN_CLEAN = 5
#: From so many clean models on the combined score may support an accusation, and an empirical
#: p-value reaches 5 %.
ENOUGH_CLEAN = 20
#: Digits after the point of every statistic, in memory as in files.
DIGITS = 9


def config_sha256(config: Mapping[str, Json]) -> str:
    """Return the digest of a scanner's configuration, the same for a record and for its JSON."""
    text = json.dumps(_listed(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _listed(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannerReference:
    """A scanner in exactly the form in which the population was scanned.

    Attributes:
        id: the scanner's id.
        version: version of its method.
        family: its family.
        config_sha256: digest of its configuration.
        transform: scale of the statistics.
    """

    id: str
    version: str
    family: str
    config_sha256: str
    transform: Transform


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics:
    """What the scanners measured on one model.

    Attributes:
        id: the model's name.
        architecture: its architecture.
        dataset: what it was trained on; empty where unknown.
        classes: its outputs, K.
        input_size: side of its input in pixels.
        images: clean images that it was scanned with.
        attack: the attack's id; None for a clean model.
        statistics: transformed score by scanner id; None where it gave none.
    """

    id: str
    architecture: str
    dataset: str
    classes: int
    input_size: int
    images: int
    attack: str | None
    statistics: Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRates:
    """What the whole verdict did on models that had no part in the population.

    Attributes:
        source: where the models come from.
        clean: clean models.
        false_alarms: of these, the ones called backdoored.
        undecided: of these, the ones called inconclusive.
        attacked: attacked models whose attack had passed its gate.
        detected: of these, the ones called backdoored.
    """

    source: str
    clean: int
    false_alarms: int
    undecided: int
    attacked: int
    detected: int

    def __post_init__(self) -> None:
        for name in ("clean", "false_alarms", "undecided", "attacked", "detected"):
            require_range(self, name, low=0)
        if self.false_alarms + self.undecided > self.clean or self.detected > self.attacked:
            raise ConfigError(
                "measured rates contradict themselves: expected at most as many verdicts as "
                f"models, got {self.false_alarms} + {self.undecided} of {self.clean} and "
                f"{self.detected} of {self.attacked}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """One reference population: models of one bucket, scanned alike.

    Attributes:
        id: name that reports carry.
        families: architecture families of the clean models.
        bucket: what a suspect must agree in.
        scanners: the scanners whose scores are combined.
        models: every model with its statistics, the clean ones and known attacks.
        suspicious_level: p-value up to which a combined score keeps a model from ``clean``.
        strong_level: p-value up to which it may support a strong finding.
        suspicious: the combined score at `suspicious_level` with all scanners, for readers.
        strong: the combined score at `strong_level`.
        rates: what the verdict did on other models; None where nobody measured it.
        clean_sets: names of the clean sets.
        hardware: what the scans ran on.
        versions: of Python and packages.
        notes: what a reader should know.
    """

    id: str
    families: tuple[str, ...]
    bucket: Bucket
    scanners: tuple[ScannerReference, ...]
    models: tuple[ModelStatistics, ...]
    suspicious_level: float
    strong_level: float
    suspicious: float
    strong: float
    rates: MeasuredRates | None = None
    clean_sets: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("suspicious_level", "strong_level"):
            require_range(self, name, low=0, high=1, is_low_open=True)
        require_range(self, "suspicious", low=0)
        require_range(self, "strong", low=0)
        for kind, names in (
            ("models", [m.id for m in self.models]),
            ("scanners", [s.id for s in self.scanners]),
        ):
            if len(set(names)) < len(names):
                raise ConfigError(f"population {self.id!r} names one of its {kind} twice")
        known = {scanner.id for scanner in self.scanners}
        for model in self.models:
            if set(model.statistics) != known:
                raise ConfigError(
                    f"population {self.id!r}: expected statistics of {', '.join(sorted(known))} "
                    f"for model {model.id!r}, got {', '.join(sorted(model.statistics)) or 'none'}"
                )

    @property
    def clean(self) -> tuple[ModelStatistics, ...]:
        """The clean models."""
        return tuple(model for model in self.models if model.attack is None)

    @property
    def attacked(self) -> tuple[ModelStatistics, ...]:
        """The models with a known attack."""
        return tuple(model for model in self.models if model.attack is not None)
