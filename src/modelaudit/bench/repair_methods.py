"""The repairs that `bench repair` compares, each with what decides its result."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelaudit.bench.scan import method_sha256
from modelaudit.engine.attempt import BUDGET_IF_CLEAN
from modelaudit.engine.budget import BUDGET_VERSION
from modelaudit.engine.components import build_repair, build_scanners
from modelaudit.engine.repair import AUTO_PRUNE_FIRST, AUTO_TRAIN, MAX_TRACED_SHARE
from modelaudit.engine.rescan import RESCAN_VERSION
from modelaudit.engine.witness import WITNESS_VERSION
from modelaudit.errors import ConfigError
from modelaudit.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelaudit.repairs import Repair

#: id of the repair that chooses for itself
AUTO = "auto"
#: clean images of repairs that train and of `auto`: 5 % of CIFAR-10's training images
TRAINING_IMAGES = 2_500
#: clean images of repairs that only prune: 1 %
PRUNING_IMAGES = 500


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Method:
    """One repair to be compared.

    Attributes:
        id: the repair's, or ``"auto"``.
        variant: of it; None for its default.
        repair: configured; None for `auto`.
        images: size of the clean set that it is given.
        config_sha256: digest of its version and configuration, and of the scanners and the witness
            that the effects in its row rest on; of `auto`, of all that it may use.
    """

    id: str
    variant: str | None
    repair: Repair[Any] | None
    images: int
    config_sha256: str

    @property
    def full_id(self) -> str:
        """The id with ``@variant`` if it is not the default."""
        return f"{self.id}@{self.variant}" if self.variant else self.id


def build_methods(
    ids: Sequence[str] = (), *, has_paper_code: bool = False, images: int | None = None
) -> tuple[Method, ...]:
    """Return the repairs that are to be compared, variants behind the defaults.

    Args:
        ids: with ``@variant`` where wanted; every registered repair and `auto` if empty.
        has_paper_code: whether the variant ``paper_code`` of each repair that has one runs too.
        images: size of the clean sets; if None, 500 for repairs that prune only, 2,500 for others.

    Raises:
        ConfigError: no repair of an id, or `auto` with a variant.
        PluginError: a repair that was asked for cannot be imported.
    """
    registry = Registry("repairs")
    wanted = list(ids or (*registry.ids(), AUTO))
    if has_paper_code:
        bare = dict.fromkeys(id_.partition("@")[0] for id_ in wanted if id_ != AUTO)
        wanted += [
            f"{id_}@paper_code"
            for id_ in bare
            if "paper_code" in getattr(registry.load(id_), "variants", {})
        ]
    return tuple(_build(full_id, images) for full_id in dict.fromkeys(wanted))


def _build(full_id: str, images: int | None) -> Method:
    id_, _, variant = full_id.partition("@")
    if id_ == AUTO:
        if variant:
            raise ConfigError(f"{AUTO!r} has no variants, got {full_id!r}")
        return Method(
            id=AUTO,
            variant=None,
            repair=None,
            images=images or TRAINING_IMAGES,
            config_sha256=_auto_sha256(),
        )
    repair = build_repair(full_id, ())
    return Method(
        id=id_,
        variant=variant or None,
        repair=repair,
        images=images or (TRAINING_IMAGES if repair.is_training else PRUNING_IMAGES),
        config_sha256=_repair_sha256(repair),
    )


def _repair_sha256(repair: Repair[Any]) -> str:
    return _digest({**_effects_record(), "repair": method_sha256(repair)})


def _auto_sha256() -> str:
    repairs = [build_repair(id_, ()) for id_ in dict.fromkeys((*AUTO_PRUNE_FIRST, *AUTO_TRAIN))]
    record = {
        **_effects_record(),
        "repairs": {r.full_id: method_sha256(r) for r in repairs},
        "budget": BUDGET_VERSION,
        "rescan": RESCAN_VERSION,
        "order": [AUTO_PRUNE_FIRST, AUTO_TRAIN, MAX_TRACED_SHARE],
    }
    return _digest(record)


def _effects_record() -> dict[str, object]:
    """Return what a row rests on, whatever the repair itself reads: effects, and the budget."""
    scanners = {scanner.full_id: method_sha256(scanner) for scanner in build_scanners((), ())}
    return {
        "scanners": scanners,
        "witness": WITNESS_VERSION,
        "budget_if_clean": BUDGET_IF_CLEAN,
    }


def _digest(record: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
