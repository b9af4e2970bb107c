"""What it means to prune a neuron, once for all repairs (methods/repairs.md §0.2).

Released codes differ: those of ANP, DDE and MBNS zero gamma alone and leave a constant beta behind,
that of CLP zeroes gamma and beta. `PruneMode` names the two; ``zero`` is the default.

A pruned channel of the last norm of a residual branch takes the branch's part away; the shortcut's
part of the sum stays. Training may revive a pruned neuron (its beta has a gradient wherever no ReLU
follows directly), so that a trainer re-applies the mask after every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modelaudit.errors import RepairError, ShapeError
from modelaudit.repairs._feeders import sole_feeders
from modelaudit.scanners._channels import Neuron, grouped
from modelaudit.suspect import SiteKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from modelaudit.suspect import Site, Suspect

__all__ = ["Neuron", "PruneMask", "PruneMode", "prune_mask"]


class PruneMode(StrEnum):
    """What is set to zero."""

    #: gamma and beta, and the filter and bias of a convolution that feeds this norm alone: the
    #: channel is exactly 0
    ZERO = "zero"
    #: gamma alone, as the released codes of ANP, DDE and MBNS do: the channel is beta everywhere
    OFFICIAL = "official"


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneMask:
    """Pruned neurons and the rows of parameters that stay at zero for them.

    Attributes:
        neurons: in execution order of the layers, ascending within a layer.
        mode: what was zeroed.
        rows: (parameter name, ascending indices along its first dimension).
    """

    neurons: tuple[Neuron, ...]
    mode: PruneMode
    rows: tuple[tuple[str, tuple[int, ...]], ...]

    def apply(self, module: nn.Module, optimiser: torch.optim.Optimizer | None = None) -> None:
        """Zero the rows, in place.

        Args:
            module: of the architecture that the mask was made for.
            optimiser: of `module`; its state (momentum) for these rows is zeroed too, or its next
                step would move them.

        Raises:
            ShapeError: `module` has no such rows.
        """
        with torch.no_grad():
            for parameter, index in self._rows(module):
                parameter[index] = 0
                if optimiser is None or parameter not in optimiser.state:
                    continue
                for value in optimiser.state[parameter].values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value[index] = 0

    def mask_gradients(self, module: nn.Module) -> None:
        """Zero the rows' gradients, in place; for a trainer that clips or averages them.

        Args:
            module: as in `apply`.
        """
        for parameter, index in self._rows(module):
            if parameter.grad is not None:
                parameter.grad[index] = 0

    def holds(self, module: nn.Module) -> bool:
        """Return whether every row is zero in `module`."""
        return all(bool((p.detach()[index] == 0).all()) for p, index in self._rows(module))

    def joined(self, other: PruneMask) -> PruneMask:
        """Return the mask of both; `other` was made for a model that this one was applied to."""
        return PruneMask(
            neurons=(*self.neurons, *other.neurons),
            mode=other.mode,
            rows=(*self.rows, *other.rows),
        )

    def by_layer(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return (layer name, channel indices) of every layer with pruned channels."""
        return tuple((name, tuple(indices)) for name, indices in grouped(self.neurons).items())

    def _rows(self, module: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        found = []
        for name, indices in self.rows:
            parameter = parameters.get(name)
            if parameter is None or max(indices) >= len(parameter):
                raise ShapeError(
                    f"expected a parameter {name!r} with more than {max(indices)} rows, the module "
                    "has none; the mask is another model's"
                )
            found.append((parameter, torch.tensor(indices, device=parameter.device)))
        return found


def prune_mask(
    model: Suspect, neurons: Sequence[Neuron], *, mode: PruneMode = PruneMode.ZERO
) -> PruneMask:
    """Return the mask that prunes `neurons` of `model`, without applying it.

    Mode ``zero``: gamma = beta = 0, and, where a convolution feeds this norm and nothing else
    (found by dataflow, `sole_feeders`; not in PreAct blocks whose input goes on to a shortcut, not
    in DenseNet), its filter and bias too. Mode ``official``: gamma alone. A layer without BatchNorm
    loses its output row and bias, in ``official`` mode its row alone.

    Args:
        model: the copy; one image passes through it if a filter may have to go.
        neurons: sites of `model` with channel indices, in any order; none gives an empty mask.
        mode: what to zero.

    Raises:
        ShapeError: a neuron is none of the model's.
        RepairError: a layer has no scale and no filter of its own to zero.
    """
    sites = {site.name: site for site in model.sites}
    wanted = grouped(sorted(set(neurons)))
    for name, indices in wanted.items():
        if name not in sites or not 0 <= min(indices) <= max(indices) < sites[name].channels:
            raise ShapeError(f"expected channels of the model's layers, got {name!r} {indices}")
    has_filters = mode is PruneMode.ZERO and any(sites[name].upstream for name in wanted)
    feeders = sole_feeders(model) if has_filters else {}
    rows: dict[str, tuple[int, ...]] = {}
    for site in model.sites:
        if site.name in wanted:
            chosen = tuple(wanted[site.name])
            for name in _parameters(model.module, site, feeders.get(site.name), mode):
                rows[name] = chosen
    order = {site.name: i for i, site in enumerate(model.sites)}
    return PruneMask(
        neurons=tuple(sorted(set(neurons), key=lambda n: (order[n[0]], n[1]))),
        mode=mode,
        rows=tuple(rows.items()),
    )


def zero_channels(model: Suspect) -> PruneMask | None:
    """Return the mask of the channels whose scale is exactly zero already, as a repair leaves them.

    Training would revive them, and with them what they were pruned for. A shift that is not zero is
    none of the mask's: it may be trained.

    Args:
        model: as it was read.

    Returns:
        None where no channel is zero. The mode is ``official`` where a channel has a shift.
    """
    neurons: list[Neuron] = []
    rows: list[tuple[str, tuple[int, ...]]] = []
    mode = PruneMode.ZERO
    for site in model.sites:
        layer = model.module.get_submodule(site.name)
        scale, shift = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if not isinstance(scale, Tensor):
            continue
        is_zero = (scale.detach().flatten(1) == 0).all(1) if scale.dim() > 1 else scale == 0
        indices = tuple(is_zero.nonzero().flatten().tolist())
        if not indices:
            continue
        neurons += [(site.name, index) for index in indices]
        rows.append((f"{site.name}.weight", indices))
        if isinstance(shift, Tensor):
            still = tuple(index for index in indices if float(shift.detach()[index]) == 0)
            mode = mode if still == indices else PruneMode.OFFICIAL
            rows += [(f"{site.name}.bias", still)] if still else []
    if not neurons:
        return None
    return PruneMask(neurons=tuple(neurons), mode=mode, rows=tuple(rows))


def is_prunable(model: Suspect, site: Site) -> bool:
    """Return whether a site has a scale of its own, without which its channels cannot be zeroed."""
    return isinstance(getattr(model.module.get_submodule(site.name), "weight", None), Tensor)


def _parameters(module: nn.Module, site: Site, feeder: str | None, mode: PruneMode) -> list[str]:
    """Return the names of the parameters whose rows make up a site's channels."""
    layer = module.get_submodule(site.name)
    if getattr(layer, "weight", None) is None:
        raise RepairError(
            f"the layer {site.name!r} has no scale to set to zero, so that its channels cannot be "
            "pruned"
        )
    names = [f"{site.name}.weight"]
    if mode is PruneMode.OFFICIAL:
        return names
    if getattr(layer, "bias", None) is not None:
        names.append(f"{site.name}.bias")
    if feeder is not None and site.kind is SiteKind.BATCHNORM:
        names.append(f"{feeder}.weight")
        if getattr(module.get_submodule(feeder), "bias", None) is not None:
            names.append(f"{feeder}.bias")
    return names
