"""The acceptance gate: a model bears the name of its attack only if the attack worked."""

from __future__ import annotations

from dataclasses import dataclass

#: smallest ASR of a label map, as a fraction; all-to-all is measured against the model's own
#: accuracy
MINIMUM_ASR = {"one": 0.95, "source": 0.90, "clean_label": 0.90}
#: how far ASR may lie below ACC for all-to-all: a model that errs cannot shift what it errs on
ALL_TO_ALL_MARGIN = 0.03
#: how far ACC may lie below the clean twin's
ACCURACY_MARGIN = 0.015
#: largest share of triggered images that the clean twin itself sends to the attacker's label
MAXIMUM_BENIGN_ASR = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """Whether an attacked model is accepted.

    Attributes:
        is_passed: all conditions hold.
        reasons: one sentence per condition that does not.
    """

    is_passed: bool
    reasons: tuple[str, ...]


def judge_attack(
    *, label_map: str, acc: float, twin_acc: float, asr: float, benign_asr: float
) -> GateResult:
    """Judge an attacked model beside its clean twin; all rates are fractions of test images.

    Args:
        label_map: id of the label map.
        acc: clean accuracy of the model.
        twin_acc: clean accuracy of its twin.
        asr: attack success rate of the model.
        benign_asr: attack success rate measured on the twin.
    """
    reasons = []
    if label_map == "all":
        minimum = acc - ALL_TO_ALL_MARGIN
        wanted = f"the accuracy of {acc:.4f} minus {ALL_TO_ALL_MARGIN}"
    else:
        minimum = MINIMUM_ASR[label_map]
        wanted = f"{minimum}"
    if asr < minimum:
        reasons.append(f"attack success rate {asr:.4f} is below {wanted}")
    if acc < twin_acc - ACCURACY_MARGIN:
        reasons.append(
            f"accuracy {acc:.4f} is more than {ACCURACY_MARGIN} below the clean twin's "
            f"{twin_acc:.4f}"
        )
    if label_map != "all" and benign_asr > MAXIMUM_BENIGN_ASR:
        reasons.append(
            f"the clean twin itself sends {benign_asr:.4f} of the triggered images to the "
            f"attacker's label, more than {MAXIMUM_BENIGN_ASR}"
        )
    return GateResult(is_passed=not reasons, reasons=tuple(reasons))
