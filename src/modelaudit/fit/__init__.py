"""Works out how a model is to be run on the clean set, with margins; ties are said, not guessed."""

from __future__ import annotations

from modelaudit.fit.crops import TrainingCrop, training_crops
from modelaudit.fit.result import Fit, accuracy_gate
from modelaudit.fit.search import fit

__all__ = ["Fit", "TrainingCrop", "accuracy_gate", "fit", "training_crops"]
