"""Triggers: what the attacker does to an image.

They act on images in [0, 1] before normalisation, and their output is rounded to 8 bits, so that no
model depends on values that an image file cannot hold.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor


def round_to_8_bits(images: Tensor) -> Tensor:
    """Return `images` clipped to [0, 1] and rounded to multiples of 1/255; any shape, floating."""
    return (images.clamp(0.0, 1.0) * 255.0).round() / 255.0


class Trigger(ABC):
    """What the attacker does to an image at test time, and to poisoned images in training.

    Attributes:
        size: height and width of the images it is made for, in pixels.
    """

    #: whether it is a fixed function of one image
    pure: ClassVar[bool] = True
    #: whether it draws from the generator that it is given
    stochastic: ClassVar[bool] = False
    #: whether it has weights that are trained
    learned: ClassVar[bool] = False
    #: whether `apply_train` needs what the attack's `prepare` makes of the training images
    prepared: ClassVar[bool] = False
    #: whether `cover` needs other images of the batch
    needs_donors: ClassVar[bool] = False
    size: tuple[int, int]

    @abstractmethod
    def apply(
        self, images: Tensor, *, indices: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Put the test-time trigger on images.

        Args:
            images: shape ``(N, C, H, W)``, floating, in [0, 1]; never changed in place.
            indices: number of each image, shape ``(N,)``, int64, for triggers that differ by
                image: in training its index in the training set, where rates are measured its
                place among the measured images.
            generator: source of randomness of a `stochastic` trigger.

        Returns:
            A new tensor of the same shape, dtype and device, in [0, 1], in steps of 1/255.

        Raises:
            ShapeError: the images are not of the trigger's size.
        """

    def apply_train(
        self, images: Tensor, *, indices: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Put the training trigger on images; the same as `apply` unless a subclass differs."""
        return self.apply(images, indices=indices, generator=generator)

    def cover(
        self, images: Tensor, *, donors: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Make the images that carry something like the trigger under their true label.

        Raises:
            ConfigError: the attack has no such images.
        """
        del images, donors, generator
        raise ConfigError(
            f"{type(self).__name__} has no cover images, set the plan's cover_rate to 0"
        )

    @abstractmethod
    def state(self) -> Mapping[str, Tensor]:
        """Return the tensors that define the trigger, by name."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over the tensors of another trigger's `state`.

        Raises:
            ConfigError: names or shapes differ.
        """
        own = self.state()
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
        if found != expected:
            raise ConfigError(f"the trigger needs tensors {expected!r}, found {found!r}")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def state_hash(self) -> str:
        """Return the SHA-256 of `state`, in hexadecimal."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
