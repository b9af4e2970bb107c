"""The contract of every repair: needs as data, a final `repair` that copies, times, re-measures."""

from __future__ import annotations

import copy
import math
import time
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, final

import torch

from modelaudit import config as configuration
from modelaudit.component import CleanData, Component, Context
from modelaudit.errors import ConfigError, RepairError, UnmetNeedError
from modelaudit.repairs._measure import measure
from modelaudit.repairs.pruning import zero_channels
from modelaudit.results import Cost
from modelaudit.seeds import derive_seed
from modelaudit.suspect import Suspect, profile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from modelaudit.repair_results import Measurements
    from modelaudit.repairs.data import RepairData
    from modelaudit.repairs.pruning import PruneMask
    from modelaudit.results import Json, ScannerResult
    from modelaudit.suspect import Profile

C = TypeVar("C")

#: Mode of what is pruned without a mask: what a channel feeds is zero in the next layer.
COLUMNS = "columns"

_SELF_LABELS = (
    "the clean set has no labels: the model's own predictions stood in for them, so that accuracy "
    "means agreement with the model as it was"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairContext(Context):
    """What the engine lends to a repair.

    Attributes, beside those of `Context`:
        profile: a shared pass of the suspect over `RepairData.as_trained`, in their order; a repair
            that needs one makes its own if it is None.
        findings: what a scan of this suspect said; empty for a repair that does not read any.
        max_accuracy_drop: what the whole repair may cost in clean accuracy, a fraction.
        pruned: neurons that an earlier repair has pruned; they stay so.
        original: the model that the cost is counted from, where an earlier repair has cost some
            already; None is the model as it is given.
    """

    profile: Profile | None = None
    findings: tuple[ScannerResult, ...] = ()
    max_accuracy_drop: float = 0.02
    pruned: PruneMask | None = None
    original: Suspect | None = None

    def __post_init__(self) -> None:
        configuration.require_range(self, "batch_size", low=1)
        configuration.require_range(self, "max_accuracy_drop", low=0, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a repair's `_repair` did to the copy.

    Attributes:
        mask: the neurons that were pruned and how, or None if none was.
        pruned: (layer name, channel indices) that were pruned otherwise, such as feature channels
            that the classifier no longer reads.
        trained_against: ids of the scanners whose pushes the copy has learned to withstand: that
            these lead nowhere in it is no evidence.
        history: loss per epoch, or whatever the method minimises, in order.
        details: what else readers of the JSON want to know.
        notes: sentences that the reader of the report should see.
    """

    mask: PruneMask | None = None
    pruned: tuple[tuple[str, tuple[int, ...]], ...] = ()
    trained_against: tuple[str, ...] = ()
    history: tuple[float, ...] = ()
    details: Mapping[str, Json] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RepairedModel:
    """A new model and what it took to make it.

    Attributes:
        id: the repair's id, with ``@variant`` if it is not the default.
        version: version of the method.
        module: the repaired network: eval mode, float32, CPU; same keys and shapes as the
            suspect's.
        mask: what was pruned and how; None if nothing was.
        pruned: (layer name, channel indices) of every layer with pruned channels, in execution
            order.
        trained_against: ids of the scanners whose pushes it has learned to withstand.
        measurements: clean accuracy before and after, and agreement with the suspect, over the
            validation images.
        history: loss per epoch.
        cost: image passes and seconds, those of the measurements included.
        config: every field of the configuration; `config_set` names those that the user set.
        seed: seed that the repair derived for itself.
        details: what else readers of the JSON want to know; ``prune_mode``, where anything was
            pruned: a `PruneMode`, or `COLUMNS` where the next layer no longer reads the channels.
        notes: sentences that the reader of the report should see.
    """

    id: str
    version: str
    module: nn.Module
    mask: PruneMask | None
    pruned: tuple[tuple[str, tuple[int, ...]], ...]
    trained_against: tuple[str, ...]
    measurements: Measurements
    history: tuple[float, ...]
    cost: Cost
    config: Mapping[str, Json]
    config_set: tuple[str, ...]
    seed: int
    details: Mapping[str, Json]
    notes: tuple[str, ...]

    @property
    def pruned_neurons(self) -> int:
        """How many neurons were pruned."""
        return sum(len(indices) for _, indices in self.pruned)


class Repair(Component[C]):
    """One repair.

    Subclasses state what they need as class attributes and write `_repair`. Third parties register
    a subclass in the entry-point group ``modelaudit.repairs`` under its `id`.
    """

    #: named alternatives with the same id; ``paper_code`` is what the authors' released code does
    variants: ClassVar[Mapping[str, type[Repair[Any]]]] = MappingProxyType({})

    #: whether it trains weights; one that does not leaves every buffer bit for bit
    is_training: ClassVar[bool] = False
    #: whether it wants the suspect itself, not what another repair has made of it
    starts_afresh: ClassVar[bool] = False
    #: whether what a scan found decides what it does
    reads_findings: ClassVar[bool] = False
    requires_mixture: ClassVar[bool] = False

    @final
    def _unmet_need_of_kind(self, suspect: Suspect, clean: CleanData) -> str | None:
        if self.requires_mixture and clean.mixture is None:
            return (
                "needs images of the suspect training set, poisoned ones among them (--mixture): "
                "clean images alone show it nothing"
            )
        return self._unmet_need_of_settings(suspect, clean)

    def _unmet_need_of_settings(self, suspect: Suspect, clean: CleanData) -> str | None:  # noqa: ARG002 - overridden
        """Return what the configuration asks for and is not there; a mixture is, if required."""
        return None

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:  # noqa: ARG002 - overridden
        """Return the image passes that `_repair` will make, at most."""
        return Cost()

    @final
    def repair(
        self, suspect: Suspect, data: RepairData, *, context: RepairContext
    ) -> RepairedModel:
        """Repair a copy; the suspect stays bit for bit as it is.

        Args:
            suspect: the model to be repaired.
            data: clean images; no trigger, no poisoned image and no true target is ever given,
                except in a mixture that the user brings without knowing which images are poisoned.
            context: shared profile, findings, seed, progress, limits.

        Returns:
            The new model with what was measured on it.

        Raises:
            UnmetNeedError: a declared need is not met; nothing was done.
            RepairError: the subclass claims what it did not do, or broke the model.
        """
        need = self.unmet_need(suspect, data)
        if need is not None:
            raise UnmetNeedError(f"{self.full_id} {need}")
        if context.profile is not None and len(context.profile.logits) != len(data.as_trained):
            raise ConfigError(
                f"expected a profile of the {len(data.as_trained)} clean images, got one of "
                f"{len(context.profile.logits)}"
            )
        start = time.perf_counter()
        model = _copy(suspect)
        validation = data.images[data.validation]
        before = model.predict(validation, batch_size=context.batch_size)
        # Somebody pruned these before us: what trains must not revive them.
        zero = zero_channels(model)
        pruned = context.pruned
        if zero is not None:
            is_new = pruned is None or not set(zero.neurons) <= set(pruned.neurons)
            if is_new:
                context = replace(context, pruned=zero if pruned is None else pruned.joined(zero))
        change = self._repair(model, data, context)
        if pruned is not None and not pruned.holds(model.module):
            raise RepairError(f"{self.full_id} revived neurons that had been pruned before")
        if zero is not None:
            zero.apply(model.module)
        model.module.eval()
        after = model.predict(validation, batch_size=context.batch_size)
        _restore_flags(model.module, suspect.module)
        module = model.module.to("cpu")
        self._check(change, suspect, module)
        return RepairedModel(
            id=self.full_id,
            version=self.version,
            module=module,
            mask=change.mask,
            pruned=(*(() if change.mask is None else change.mask.by_layer()), *change.pruned),
            trained_against=change.trained_against,
            measurements=measure(
                before, after, data.labels[data.validation], has_labels=data.has_labels
            ),
            history=change.history,
            cost=Cost(
                forward=model.passes.forward,
                forward_backward=model.passes.forward_backward,
                seconds=time.perf_counter() - start,
            ),
            config=configuration.fields(self.config),
            config_set=self.config_set,
            seed=derive_seed(context.seed, self.id),
            details={**change.details, **_prune_mode(change)},
            notes=(*_label_notes(data), *_zero_notes(zero), *change.notes),
        )

    @abstractmethod
    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        """Change ``model.module`` in place.

        Args:
            model: the suspect of a copy of its own, in eval mode, with every ``requires_grad`` on;
                its passes are counted and its module is what will be returned.
            data: as given to `repair`.
            context: as given to `repair`.
        """

    @final
    def profile(self, model: Suspect, data: RepairData, context: RepairContext) -> Profile:
        """Return the shared pass over `RepairData.as_trained`, made here if nobody has made it.

        Args:
            model: the copy, before it is changed.
            data: the clean images.
            context: of this repair.
        """
        if context.profile is not None:
            return context.profile
        with model.borrowed():
            return profile(model, data.as_trained, batch_size=context.batch_size)

    def _check(self, change: Change, suspect: Suspect, module: nn.Module) -> None:
        """Re-measure what the subclass claims."""
        old, new = suspect.module.state_dict(), module.state_dict()
        if {k: v.shape for k, v in old.items()} != {k: v.shape for k, v in new.items()}:
            raise RepairError(f"{self.full_id} changed the names or shapes of the model's tensors")
        broken = [k for k, v in new.items() if v.is_floating_point() and not v.isfinite().all()]
        whole = [k for k in broken if bool(old[k].isfinite().all())]
        if whole:
            raise RepairError(f"{self.full_id} left values that are not finite in {whole[0]!r}")
        if not self.is_training:
            buffers = dict(module.named_buffers())
            for name, before in suspect.module.named_buffers():
                if not _equal(before, buffers[name]):
                    raise RepairError(
                        f"{self.full_id} changed the buffer {name!r} without training"
                    )
        if change.mask is not None and not change.mask.holds(module):
            raise RepairError(f"{self.full_id} lists neurons as pruned that still act")
        if not all(math.isfinite(x) for x in change.history):
            raise RepairError(f"{self.full_id} diverged: its loss is not finite; lower the rate")


def _prune_mode(change: Change) -> dict[str, Json]:
    """Return which meaning of pruning the numbers of a repair rest on (methods/repairs.md §0.2)."""
    if change.mask is not None:
        return {"prune_mode": change.mask.mode.value}
    return {"prune_mode": COLUMNS} if change.pruned else {}


def _copy(suspect: Suspect) -> Suspect:
    """Return the suspect of a deep copy in eval mode, float32, everything trainable."""
    module = copy.deepcopy(suspect.module).float().eval()
    for parameter in module.parameters():
        parameter.grad = None
        parameter.requires_grad_(True)
    return Suspect(
        module,
        preprocessing=suspect.preprocessing,
        input_size=suspect.input_size,
        input_channels=suspect.input_channels,
        num_classes=suspect.num_classes,
        device=suspect.device,
    )


def _restore_flags(module: nn.Module, original: nn.Module) -> None:
    flags = {name: p.requires_grad for name, p in original.named_parameters()}
    for name, parameter in module.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(flags.get(name, True))


def _equal(one: Tensor, other: Tensor) -> bool:
    """Compare bit for bit, two NaN being equal."""
    a, b = one.detach().cpu(), other.detach().cpu()
    if not a.is_floating_point():
        return torch.equal(a, b)
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _zero_notes(zero: PruneMask | None) -> tuple[str, ...]:
    if zero is None:
        return ()
    return (f"channels that were zero in the model before, and stay so: {len(zero.neurons):,}",)


def _label_notes(data: RepairData) -> tuple[str, ...]:
    if data.has_labels:
        return ()
    return (_SELF_LABELS,)
