"""What scanners and repairs have in common: what they declare, are given and are lent."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar, final

from modelaudit.errors import DtypeError, ShapeError
from modelaudit.progress import NoProgress, Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from modelaudit.suspect import Suspect

C = TypeVar("C")


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanData:
    """The clean images as every component sees them.

    Attributes:
        images: ``(N, C, S, S)`` floating, in [0, 1], at the suspect's input size.
        labels: ``(N,)`` int64 output indices: the user's, or the suspect's own predictions.
        has_labels: whether `labels` are the user's.
        as_trained: ``(N, C, S, S)``: `images` under the augmentation that the suspect's BatchNorm
            statistics were collected with, as far as the fit can tell; the shared profile is taken
            over these.
        mixture: ``(M, C, S, S)`` images of a suspect training set, if the user gave one; nobody
            says which of them are poisoned.
    """

    images: Tensor
    labels: Tensor
    has_labels: bool
    as_trained: Tensor
    mixture: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("images", "as_trained", "mixture"):
            batch = getattr(self, name)
            if batch is None:
                continue
            if batch.dim() != 4:
                raise ShapeError(f"expected {name} (N, C, H, W), got {tuple(batch.shape)}")
            if not batch.is_floating_point():
                raise DtypeError(f"expected floating {name}, got {batch.dtype}")
            if batch.numel() and not (batch.min() >= 0 and batch.max() <= 1):
                raise ShapeError(f"expected {name} in [0, 1], got values outside")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the engine lends to every component.

    Attributes:
        seed: the run's seed; components derive their own.
        progress: where to report steps.
        batch_size: bounds the images computed together; changes no result.
        search_dtype: dtype of convolutions inside searches (bfloat16 where the hardware has it);
            None is float32. Evidence and accuracies are always measured in float32.
    """

    seed: int = 0
    progress: Progress = field(default_factory=NoProgress)
    batch_size: int = 256
    search_dtype: torch.dtype | None = None


class Component(ABC, Generic[C]):
    """What can be registered under an id, configured, and run on a suspect and clean images.

    Args:
        config: hyper-parameters; the defaults of `config_type` if omitted.
        variant: name of the preset that `config` came from, for the report.
        config_set: fields that the user set.
    """

    #: stable id, equal to the entry point's name
    id: ClassVar[str]
    #: raised by every change of what the component finds in a model or makes of it
    version: ClassVar[str]
    #: one line for ``modelaudit list``
    summary: ClassVar[str]
    #: key of docs/references.md, with section or equation
    reference: ClassVar[str]
    #: frozen dataclass of hyper-parameters, constructible without arguments
    config_type: ClassVar[type]

    requires_gradients: ClassVar[bool] = False
    requires_batchnorm: ClassVar[bool] = False
    requires_labels: ClassVar[bool] = False
    min_images: ClassVar[int] = 1
    min_classes: ClassVar[int] = 1

    def __init__(
        self,
        config: C | None = None,
        *,
        variant: str | None = None,
        config_set: tuple[str, ...] = (),
    ) -> None:
        self.config: C = self.config_type() if config is None else config
        self.variant = variant
        self.config_set = config_set

    @property
    def full_id(self) -> str:
        """The id with ``@variant`` if it is not the default."""
        return f"{self.id}@{self.variant}" if self.variant else self.id

    @final
    def unmet_need(self, suspect: Suspect, clean: CleanData) -> str | None:
        """Return the first declared need that is not met, in words, or None."""
        if self.requires_batchnorm and not suspect.has_batchnorm_statistics:
            return "needs BatchNorm with running statistics, the model has none"
        need = self._unmet_need_of_kind(suspect, clean)
        if need is not None:
            return need
        if self.requires_labels and not clean.has_labels:
            return "needs labelled clean images, the clean set has no labels"
        if len(clean.images) < self.min_images:
            return f"needs {self.min_images} clean images, got {len(clean.images)}"
        if suspect.num_classes < self.min_classes:
            return f"needs {self.min_classes} classes, the model has {suspect.num_classes}"
        return None

    def _unmet_need_of_kind(self, suspect: Suspect, clean: CleanData) -> str | None:  # noqa: ARG002 - overridden
        """Return the first unmet need among those that only this kind of component declares."""
        return None
