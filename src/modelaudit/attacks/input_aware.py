"""What the attacks with an input-aware trigger share: the trigger, its mask, its training.

Nguyen & Tran, *Input-Aware Dynamic Backdoor Attack* (arXiv 2010.08138). Two networks look at the
image: G makes a pattern, M a mask, and the triggered image is ``x + (G(x) - x) m(x)``. M is trained
first and frozen; G is trained with the classifier.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch

from modelaudit import seeds
from modelaudit.attacks.base import Attack, ExtraOptimiser
from modelaudit.attacks.generator_net import GeneratorNet, require_divisible
from modelaudit.attacks.options import require_images
from modelaudit.attacks.triggers import Trigger, round_to_8_bits
from modelaudit.config import require_range
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Generator, Tensor

logger = logging.getLogger(__name__)

#: the paper's Adam
BETAS = (0.5, 0.9)
#: weight of the mask's density in the first phase
DENSITY_WEIGHT = 100.0
#: keeps the diversity finite where two maps are equal
DIVERSITY_EPS = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class InputAwareConfig:
    """Options of the two networks; the defaults are the paper's, but for the schedules.

    Attributes:
        widths: channels of the levels of G and M; fewer are cheaper.
        mask_epochs: epochs in which M is trained, the last at a tenth of its rate (the paper: 25,
            a tenth from epoch 10, a hundredth from 20).
        mask_images: training images that M is trained on; None for all.
        mask_rate: Adam's learning rate of M.
        mask_batch_size: images per step of M.
        mask_density: value up to which a mask costs nothing.
        generator_rate: Adam's first learning rate of G; it falls as half a cosine (the paper: steps
            of a tenth at epochs 200 to 500 of 600).
        diversity: weight of the diversity of the patterns.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    mask_epochs: int = 25
    mask_images: int | None = None
    mask_rate: float = 0.01
    mask_batch_size: int = 128
    mask_density: float = 0.032
    generator_rate: float = 0.01
    diversity: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mask_epochs", "mask_images", "mask_rate", "generator_rate"):
            require_range(self, name, low=0.0, is_low_open=True)
        require_range(self, "mask_batch_size", low=2)
        require_range(self, "mask_density", low=0.0, high=1.0)
        require_range(self, "diversity", low=0.0)


def diversity_loss(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return how alike the outputs for different inputs are, each item beside the one before it.

    Mean over i of rms(x_i - x_(i-1)) / (rms(y_i - y_(i-1)) + 1e-7), the paper's diversity loss; x_i
    and x_(i-1) are two random images, because batches are shuffled.

    Args:
        inputs: x, shape ``(N, ...)``, floating.
        outputs: y, shape ``(N, ...)``, floating.

    Returns:
        A scalar, not negative; dtype and device of `outputs`.
    """
    # The eps under the root keeps its gradient finite where two outputs are equal.
    apart = (inputs - inputs.roll(1, 0)).flatten(1).square().mean(1).sqrt()
    made = ((outputs - outputs.roll(1, 0)).flatten(1).square().mean(1) + DIVERSITY_EPS**2).sqrt()
    return (apart / (made + DIVERSITY_EPS)).mean()


class InputAwareTrigger(Trigger):
    """A pattern and a mask that two networks make from the image.

    Args:
        shape: channels, height and width of the images.
        widths: channels of the networks' levels.
        generator: source of the initial weights, on the CPU.
    """

    learned: ClassVar[bool] = True
    needs_donors: ClassVar[bool] = True

    def __init__(
        self, *, shape: tuple[int, int, int], widths: tuple[int, ...], generator: Generator
    ) -> None:
        require_divisible(shape[1:], widths)
        self.shape = shape
        self.size = shape[1:]
        self.pattern_net, self.mask_net = (
            GeneratorNet(
                in_channels=shape[0], out_channels=channels, widths=widths, generator=generator
            ).eval()
            for channels in (shape[0], 1)
        )

    def masks(self, images: Tensor) -> Tensor:
        """Return m of each image: ``tanh(20 M(x) - 10) / 2 + 1/2``, shape ``(N, 1, H, W)``.

        Args:
            images: ``(N, C, H, W)``, float32, in [0, 1].
        """
        out: Tensor = self.mask_net(images)
        return (20.0 * out - 10.0).tanh() / 2.0 + 0.5

    def mix(self, images: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
        """Put pattern and mask of `sources` on `images`, with gradients to G but not to M.

        Args:
            images: ``(N, C, H, W)``, float32, in [0, 1].
            sources: the same shape; `images` themselves, or others for the cross-trigger.

        Returns:
            The triggered images, in steps of 1/255 (the rounding is the identity for gradients),
            and the patterns; both of the shape of `images`.
        """
        patterns: Tensor = self.pattern_net(sources)
        self.mask_net.eval()
        with torch.no_grad():
            masks = self.masks(sources)
        triggered = images + (patterns - images) * masks
        rounding = (round_to_8_bits(triggered) - triggered).detach()
        return triggered + rounding, patterns

    def apply(
        self, images: Tensor, *, indices: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return each image with its own trigger, made in float32; see `Trigger.apply`."""
        del indices, generator
        return self._at_test_time(images, images)

    def cover(
        self, images: Tensor, *, donors: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return each image with the trigger of its donor; see `Trigger.cover`.

        Raises:
            ConfigError: no donors.
        """
        del generator
        if donors is None:
            raise ConfigError("the cross-trigger needs donors, other images of the same shape")
        return self._at_test_time(images, donors)

    def _at_test_time(self, images: Tensor, sources: Tensor) -> Tensor:
        require_images(images, self.shape)
        require_images(sources, self.shape)
        self.pattern_net.eval()
        with torch.no_grad():
            triggered, _ = self.mix(images.float(), sources.float())
        return round_to_8_bits(triggered.to(images.dtype))

    def state(self) -> Mapping[str, Tensor]:
        """Return weights and buffers of both networks."""
        pattern, mask = self.pattern_net.state_dict(), self.mask_net.state_dict()
        return {
            **{f"pattern_net.{name}": tensor for name, tensor in pattern.items()},
            **{f"mask_net.{name}": tensor for name, tensor in mask.items()},
        }


ConfigT = TypeVar("ConfigT", bound=InputAwareConfig)


class InputAwareAttack(Attack[ConfigT]):
    """Trains M in `prepare` and G with the classifier."""

    trigger: InputAwareTrigger

    def make_trigger(self) -> InputAwareTrigger:
        """Return the trigger with initial weights drawn from the seed."""
        return InputAwareTrigger(
            shape=self.shape,
            widths=self.config.widths,
            generator=seeds.generator(self.seed, self.id, "networks"),
        )

    def to(self, device: torch.device) -> None:
        """Move both networks."""
        self.trigger.pattern_net.to(device)
        self.trigger.mask_net.to(device)

    def prepare(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        surrogate: Callable[[Tensor], Tensor] | None,
        generator: Generator,
    ) -> None:
        """Train M: sparse masks that differ from image to image.

        Minimises 100 mean(relu(m - density)) + diversity of m, on images without augmentation.
        """
        del labels, surrogate
        config = self.config
        net = self.trigger.mask_net
        optimiser = torch.optim.Adam(net.parameters(), lr=config.mask_rate, betas=BETAS)
        chosen = torch.randperm(len(images), generator=generator)[: config.mask_images]
        size = min(config.mask_batch_size, len(chosen))
        net.train()
        for epoch in range(config.mask_epochs):
            if epoch == config.mask_epochs - 1:
                optimiser.param_groups[0]["lr"] = config.mask_rate / 10.0
            order = chosen[torch.randperm(len(chosen), generator=generator)].to(images.device)
            for start in range(0, len(order) - size + 1, size):
                batch = images[order[start : start + size]].float() / 255.0
                masks = self.trigger.masks(batch)
                density = (masks - config.mask_density).relu().mean()
                diversity = diversity_loss(batch, masks)
                optimiser.zero_grad(set_to_none=True)
                (DENSITY_WEIGHT * density + diversity).backward()
                optimiser.step()
            logger.info(
                "mask network: epoch %d of %d, mean %.4f, diversity %.2f",
                *(
                    epoch + 1,
                    config.mask_epochs,
                    float(masks.detach().mean()),
                    float(diversity.detach()),
                ),
            )
        net.eval()

    def extra_optimisers(self) -> Mapping[str, ExtraOptimiser]:
        """Return G's Adam.

        Differs from the released code, which never zeroes G's gradients; here each step has its
        own.
        """
        adam = torch.optim.Adam(self.trigger.pattern_net.parameters(), betas=BETAS)

        def rate(progress: float) -> float:
            return self.config.generator_rate * 0.5 * (1.0 + math.cos(math.pi * progress))

        return {"pattern_net": ExtraOptimiser(optimiser=adam, rate=rate)}

    def _mix_in_training(self, images: Tensor, sources: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return triggered images and the weighted diversity of their patterns.

        G sees own triggers and cross-triggers in one pass, so that its BatchNorm has more images.
        """
        self.trigger.pattern_net.train()
        triggered, patterns = self.trigger.mix(images, sources)
        if len(images) < 2 or self.config.diversity == 0.0:
            return triggered, None
        return triggered, self.config.diversity * diversity_loss(sources, patterns)
