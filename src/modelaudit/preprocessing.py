"""The input normalisations that image classifiers are trained with."""

from __future__ import annotations

from dataclasses import dataclass

from modelaudit.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Per-channel normalisation ``(x - mean) / std`` of pixels in [0, 1].

    Attributes:
        id: name shown in reports and taken by ``--preprocess``; ``"custom"`` for
            ``--mean``/``--std``.
        mean: one value per input channel, or one value for all.
        std: as `mean`; every entry positive.
    """

    id: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ConfigError(
                f"preprocessing needs as many means as stds, got {len(self.mean)} and "
                f"{len(self.std)}"
            )
        if any(not s > 0 for s in self.std):
            raise ConfigError(f"preprocessing std must be positive, got {self.std!r}")

    def for_channels(self, channels: int) -> Preprocessing:
        """Return the same normalisation for an input of `channels` channels.

        A colour normalisation of a one-channel model becomes the mean over the colours.

        Raises:
            ConfigError: the number of values fits neither 1 nor `channels`, and `channels` is not
                1.
        """
        n = len(self.mean)
        if n == channels:
            return self
        if channels == 1:
            return Preprocessing(id=self.id, mean=(sum(self.mean) / n,), std=(sum(self.std) / n,))
        if n == 1:
            return Preprocessing(id=self.id, mean=self.mean * channels, std=self.std * channels)
        raise ConfigError(f"the model takes {channels} channels, the preprocessing has {n} values")


#: methods/detectors.md, table of dataset constants and §12.5. Order is the order of preference in a
#: tie.
PRESETS: tuple[Preprocessing, ...] = (
    Preprocessing(id="none", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    Preprocessing(id="cifar10_0.2023", mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    Preprocessing(id="cifar10_0.247", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    Preprocessing(id="imagenet", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    Preprocessing(id="tiny_imagenet", mean=(0.4802, 0.4481, 0.3975), std=(0.2302, 0.2265, 0.2262)),
    Preprocessing(id="gtsrb", mean=(0.3337, 0.3064, 0.3171), std=(0.2672, 0.2564, 0.2629)),
    Preprocessing(id="half", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    Preprocessing(id="mnist", mean=(0.1307,), std=(0.3081,)),
)
