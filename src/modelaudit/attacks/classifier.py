"""The classifier in training, as an attack that controls the loss sees it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelaudit.hardware import fast_format

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable


class Classifier:
    """A module together with its normaliser: images in [0, 1] in, float32 logits out.

    Args:
        module: takes normalised images.
        normalise: maps images in [0, 1] to what `module` takes.
        dtype: of convolutions and matrix products; None is float32.

    Attributes:
        outputs: what the observed layers put out in the latest call, with gradients, by name.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        normalise: Callable[[Tensor], Tensor],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.module = module
        self.normalise = normalise
        self.dtype = dtype
        self.outputs: dict[str, Tensor] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``, float32."""
        self.outputs.clear()
        layout = fast_format(self.module, images.device)
        inputs = self.normalise(images).contiguous(memory_format=layout)
        enabled = self.dtype is not None
        with torch.autocast(images.device.type, dtype=self.dtype, enabled=enabled):
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
