"""Which inputs of the first linear layer behind the features belong to which feature channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modelaudit.errors import RepairError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureColumns:
    """The layer that reads the features, and its inputs channel by channel.

    Attributes:
        layer: name of the layer; its weight's second dimension counts inputs.
        columns: for each feature channel, the inputs that it alone feeds.
    """

    layer: str
    columns: tuple[tuple[int, ...], ...]

    def zero(
        self,
        module: nn.Module,
        channels: Iterable[int],
        optimiser: torch.optim.Optimizer | None = None,
    ) -> None:
        """Make the layer blind to `channels`, in place, and forget their momentum."""
        weight = module.get_submodule(self.layer).weight
        assert isinstance(weight, nn.Parameter)
        inputs = [column for channel in channels for column in self.columns[channel]]
        with torch.no_grad():
            weight[:, inputs] = 0
            for value in {} if optimiser is None else optimiser.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value[:, inputs] = 0


def feature_columns(model: Suspect) -> FeatureColumns:
    """Find by trial which inputs each feature channel feeds.

    The head is run on features that are zero but for one channel; the first linear layer (or 1x1
    convolution) whose input then differs from that of zero features is the one that reads them.
    Names, pooling and flattening need no special case.

    Args:
        model: in eval mode. A head that runs the whole network counts one pass per channel.

    Raises:
        RepairError: there is no features/head split with maps, no such layer, or channels share an
            input.
    """
    split = model.split
    if split is None or len(split.feature_shape) != 3:
        raise RepairError(
            "expected a model with feature maps before its last layers, this one has no such "
            "split; take another repair"
        )
    channels = split.feature_shape[0]
    probe = torch.zeros((channels + 1, *split.feature_shape), device=model.device)
    which = torch.arange(channels, device=model.device)
    probe[which, which] = 1.0
    seen: list[tuple[nn.Module, Tensor]] = []

    def hook(child: nn.Module, args: tuple[Any, ...], _output: object) -> None:
        if args and isinstance(args[0], Tensor):
            seen.append((child, args[0].detach().flatten(1)))

    readers: dict[nn.Module, str] = {
        child: name
        for name, child in model.module.named_modules()
        if isinstance(child, nn.Linear)
        or (isinstance(child, nn.Conv2d) and tuple(child.kernel_size) == (1, 1))
    }
    handles = [child.register_forward_hook(hook) for child in readers]
    try:
        with torch.no_grad():
            model.head(probe)
    finally:
        for handle in handles:
            handle.remove()
    for child, inputs in seen:
        if len(inputs) != channels + 1:
            continue
        is_fed = inputs[:-1] != inputs[-1]
        if not bool(is_fed.any()):
            continue
        if isinstance(child, nn.Conv2d):
            is_fed = is_fed.view(channels, child.in_channels, -1).any(2)
        if bool((is_fed.sum(0) > 1).any()):
            break
        columns = tuple(tuple(row.nonzero().flatten().tolist()) for row in is_fed)
        return FeatureColumns(layer=readers[child], columns=columns)
    raise RepairError(
        "expected a last layer that reads every feature channel by inputs of its own, this model "
        "mixes them before; take another repair"
    )
