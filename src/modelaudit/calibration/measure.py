"""What the whole rule, verdict and populations together, does where the truth is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit.calibration.assess import assess
from modelaudit.calibration.population import MeasuredRates
from modelaudit.results import Match, Pattern, Verdict
from modelaudit.verdict import decide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.calibration.evidence import ScannedModel
    from modelaudit.calibration.population import Population
    from modelaudit.results import CombinedScore, VerdictRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One model's verdict as `modelaudit scan` would have given it.

    Attributes:
        model: the model.
        verdict: the verdict.
        combined: what the populations said.
    """

    model: ScannedModel
    verdict: VerdictRecord
    combined: CombinedScore

    @property
    def is_target_named(self) -> bool:
        """Whether the verdict is ``backdoored`` and names the attack's target or pattern."""
        if self.verdict.verdict is not Verdict.BACKDOORED:
            return False
        if self.model.label_map == "all":
            return self.verdict.pattern is Pattern.ALL_TO_ALL
        return self.verdict.target_labels == (self.model.target,)


def judge(
    model: ScannedModel, populations: Sequence[Population], *, alpha: float = 0.05
) -> Measured:
    """Return the verdict that a scan with these outcomes has."""
    combined = assess(model.outcomes, model.circumstances, populations, alpha=alpha)
    verdict = decide(
        model.outcomes,
        obstacles=model.obstacles,
        obstacles_to_clean=model.obstacles_to_clean,
        combined=combined,
    )
    return Measured(model=model, verdict=verdict, combined=combined)


def measure(
    models: Sequence[ScannedModel], population: Population, *, source: str
) -> MeasuredRates:
    """Count the verdicts on models that had no part in a population and that it matches.

    Clean models count whatever their clean set was worth; attacked ones if their attack passed its
    gate. A model whose id the population holds is left out.

    Args:
        models: scanned models, such as those of population B.
        population: the frozen reference.
        source: where the models come from, for readers.

    Returns:
        The counts; the report adds the intervals.
    """
    own = {model.id for model in population.models}
    judged = [judge(model, (population,)) for model in models if model.id not in own]
    matched = [m for m in judged if m.combined.match is Match.MATCHED]
    clean = [m.verdict.verdict for m in matched if m.model.attack is None]
    attacked = [m.verdict.verdict for m in matched if m.model.attack and m.model.gate_passed]
    return MeasuredRates(
        source=source,
        clean=len(clean),
        false_alarms=clean.count(Verdict.BACKDOORED),
        undecided=clean.count(Verdict.INCONCLUSIVE),
        attacked=len(attacked),
        detected=attacked.count(Verdict.BACKDOORED),
    )
