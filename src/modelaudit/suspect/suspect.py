"""The model under audit as scanners and repairs see it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelaudit.errors import ShapeError
from modelaudit.hardware import fast_format
from modelaudit.suspect.borrow import borrowed
from modelaudit.suspect.edits import BatchNormMode, Edited, SiteEdit, edited
from modelaudit.suspect.sites import Site, SiteKind, find_sites
from modelaudit.suspect.split import Split, find_split, first_output

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from modelaudit.preprocessing import Preprocessing


@dataclass(slots=True)
class PassCounter:
    """Image passes through the whole network.

    Attributes:
        forward: images passed forward without gradients.
        forward_backward: images passed forward for a backward pass.
    """

    forward: int = 0
    forward_backward: int = 0


class Suspect:
    """A classifier under audit: float images in [0, 1] in, logits out, every pass counted.

    Args:
        module: maps normalised images ``(N, C, S, S)`` to logits ``(N, K)``. It is borrowed:
            whatever happens inside `borrowed` is undone bit for bit.
        preprocessing: normalisation that the module was trained with.
        input_size: side S of the square input in pixels.
        input_channels: channels C of the input.
        num_classes: outputs K.
        device: where the module lives and computes.

    Attributes:
        sites: the neurons, layer by layer in execution order.
        split: features/head split, or None when no numerically exact one exists.
        passes: the counter.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        preprocessing: Preprocessing,
        input_size: int,
        num_classes: int,
        input_channels: int = 3,
        device: torch.device | None = None,
    ) -> None:
        self.module = module
        self.preprocessing = preprocessing.for_channels(input_channels)
        self.input_size = input_size
        self.input_channels = input_channels
        self.num_classes = num_classes
        self.device = device or next((t.device for t in module.parameters()), torch.device("cpu"))
        self.passes = PassCounter()
        shape = (1, input_channels, 1, 1)
        self._mean = torch.tensor(self.preprocessing.mean, device=self.device).view(shape)
        self._std = torch.tensor(self.preprocessing.std, device=self.device).view(shape)
        self._format = fast_format(module, self.device)
        self._autocast: torch.dtype | None = None
        # Draws from a fixed generator: the split must not depend on the caller's random state.
        gen = torch.Generator().manual_seed(0)
        batches = [
            self._normalise(torch.rand((n, input_channels, input_size, input_size), generator=gen))
            for n in (2, 3)
        ]
        with borrowed(module):
            self.split: Split | None = find_split(module, batches)
            classifier = self.split.classifier if self.split else None
            self.sites: tuple[Site, ...] = find_sites(
                module, lambda: module(batches[0]), classifier
            )
        self._channel_dims = {site.name: site.channel_dim for site in self.sites}

    @property
    def has_batchnorm(self) -> bool:
        """Whether the neurons are BatchNorm channels."""
        return any(site.kind is SiteKind.BATCHNORM for site in self.sites)

    @property
    def has_batchnorm_statistics(self) -> bool:
        """Whether there are running means and variances to compare with."""
        return any(site.has_statistics for site in self.sites)

    def statistics(self, site: Site) -> tuple[Tensor, Tensor]:
        """Return the running mean and variance of a BatchNorm site, each ``(D,)`` float64.

        Raises:
            ShapeError: the site carries no statistics.
        """
        child = self.module.get_submodule(site.name)
        mean, var = getattr(child, "running_mean", None), getattr(child, "running_var", None)
        if not isinstance(mean, Tensor) or not isinstance(var, Tensor):
            raise ShapeError(f"expected a layer with running statistics, {site.name!r} has none")
        return mean.detach().double(), var.detach().double()

    @contextmanager
    def borrowed(self) -> Generator[None]:
        """Open the module for work; everything is restored on every exit."""
        with borrowed(self.module):
            yield

    @contextmanager
    def edited(
        self,
        edits: Mapping[str, SiteEdit],
        *,
        mode: BatchNormMode = BatchNormMode.RUNNING,
        groups: int = 1,
    ) -> Generator[Edited]:
        """Run with noise, pruning or pushes on neurons; see `modelaudit.suspect.edits`.

        Args:
            edits: site name to edit.
            mode: BatchNorm statistics.
            groups: number of restarts R stacked along the batch in every pass.
        """
        with edited(
            self.module, edits, mode=mode, groups=groups, channel_dims=self._channel_dims
        ) as state:
            yield state

    @contextmanager
    def autocast(self, dtype: torch.dtype | None) -> Generator[None]:
        """Run convolutions and matrix products in `dtype`; None changes nothing."""
        before = self._autocast
        self._autocast = dtype
        try:
            yield
        finally:
            self._autocast = before

    def logits(self, images: Tensor) -> Tensor:
        """Return float32 logits ``(N, K)`` of images ``(N, C, H, W)`` in [0, 1], counting N passes.

        The pass counts as forward+backward when gradients are being recorded for it.
        """
        out: Tensor = first_output(self._run(self.module, images))
        self._count(len(images), is_backward=out.requires_grad)
        return out.float()

    def features(self, images: Tensor) -> Tensor:
        """Return g(x), shape ``(N, *split.feature_shape)``, counting N passes.

        Raises:
            ShapeError: the suspect has no split.
        """
        out = self._run(self._require_split().features, images)
        self._count(len(images), is_backward=out.requires_grad)
        return out.float()

    def head(self, features: Tensor) -> Tensor:
        """Return f_L(h), shape ``(N, K)``; counted only when it has to run the whole network."""
        split = self._require_split()
        out = split.head(features)
        if split.method == "injection":
            self._count(len(features), is_backward=out.requires_grad)
        return out.float()

    def predict(self, images: Tensor, *, batch_size: int = 256) -> Tensor:
        """Return predicted classes ``(N,)`` int64 on the CPU, without gradients."""
        with torch.no_grad():
            parts = [self.logits(batch).argmax(1) for batch in images.split(batch_size)]
        return torch.cat(parts).cpu()

    def _require_split(self) -> Split:
        if self.split is None:
            raise ShapeError(
                "expected a model with a features/head split, this one has none that is exact"
            )
        return self.split

    def _count(self, images: int, *, is_backward: bool) -> None:
        if is_backward:
            self.passes.forward_backward += images
        else:
            self.passes.forward += images

    def _normalise(self, images: Tensor) -> Tensor:
        images = images.to(self.device)
        if images.shape[-1] != self.input_size or images.shape[-2] != self.input_size:
            images = F.interpolate(
                images, (self.input_size, self.input_size), mode="bilinear", antialias=True
            )
        images = (images - self._mean) / self._std
        return images.contiguous(memory_format=self._format)

    def _run(self, function: object, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != self.input_channels:
            raise ShapeError(
                f"expected images of shape (N, {self.input_channels}, H, W), got "
                f"{tuple(images.shape)}"
            )
        x = self._normalise(images)
        assert callable(function)
        if self._autocast is None:
            return function(x)  # type: ignore[no-any-return]  # nn.Module.__call__ is Any
        with torch.autocast(self.device.type, self._autocast):
            return function(x)  # type: ignore[no-any-return]  # nn.Module.__call__ is Any
