"""The classifier in training, as an attack that controls the loss sees it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable


class Classifier:
    """A module together with its normaliser: images in [0, 1] in, float32 logits out.

    Args:
        module: takes normalised images.
        normalise: maps images in [0, 1] to what `module` takes.
        is_bfloat16: whether convolutions run in bfloat16 (training) or float32.

    Attributes:
        outputs: what the observed layers put out in the latest call, with gradients, by name.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        normalise: Callable[[Tensor], Tensor],
        is_bfloat16: bool = False,
    ) -> None:
        self.module = module
        self.normalise = normalise
        self.is_bfloat16 = is_bfloat16
        self.outputs: dict[str, Tensor] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``, float32."""
        self.outputs.clear()
        inputs = self.normalise(images).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.is_bfloat16):
            logits: Tensor = self.module(inputs)
        return logits.float()

    @contextmanager
    def observing(self, names: Iterable[str]) -> Generator[None]:
        """Keep what the named layers put out in `outputs` while the context is open.

        Args:
            names: qualified module names; each layer must return one tensor.
        """

        def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
            def hook(_: nn.Module, __: object, output: Tensor) -> None:
                self.outputs[name] = output

            return hook

        handles = []
        try:
            for name in names:
                layer = self.module.get_submodule(name)
                handles.append(layer.register_forward_hook(keep(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.outputs.clear()
