"""CLB: adversarially perturbed images of the target class with checkers at their corners.

Turner, Tsipras & Madry, *Label-Consistent Backdoor Attacks* (arXiv 1912.02771), with the bound of
ANP (Wu & Wang, arXiv 2110.14430). The perturbation makes the true class hard to see, so that the
classifier learns the corners; at test time there are corners only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.functional import cross_entropy

from modelaudit.attacks.base import Attack, Batch, PoisonedBatch
from modelaudit.attacks.options import require_choice, require_images, target_map
from modelaudit.attacks.patches import corner_checkers, corner_patch_size
from modelaudit.attacks.plan import PoisonPlan, Stage
from modelaudit.attacks.triggers import Trigger, round_to_8_bits
from modelaudit.config import require_range
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Generator, Tensor

    from modelaudit.attacks.label_maps import LabelMap

#: images that the surrogate sees at once; changes no result of a surrogate in evaluation mode
PGD_BATCH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ClbConfig:
    """Options of CLB.

    Attributes:
        target: the attacker's label.
        epsilon: bound of the perturbation in steps of 1/255; ANP's, others use 8 or 12.
        steps: of the projected gradient ascent.
        step_size: of each step in steps of 1/255; none means 2 `epsilon` / `steps`.
        amplitude: 1 overwrites the corners with black and white, less shifts them by that share of
            the range.
        patch_size: side of each corner's checker in pixels; none means 3, 5 and 21 at 32, 64 and
            224 pixels.
        rate: share of the target class that is poisoned; ANP's, MBNS has 1.
        stage: corners before (``"pre"``) or after (``"post"``) crop and flip; the perturbation
            always comes before them. See `PoisonPlan`.
    """

    target: int = 0
    epsilon: float = 16.0
    steps: int = 10
    step_size: float | None = None
    amplitude: float = 1.0
    patch_size: int | None = None
    rate: float = 0.8
    stage: Stage = "pre"

    def __post_init__(self) -> None:
        require_range(self, "epsilon", low=0.0, high=255.0)
        require_range(self, "steps", low=1)
        require_range(self, "step_size", low=0.0, is_low_open=True)
        require_range(self, "amplitude", low=0.0, high=1.0, is_low_open=True)
        require_range(self, "patch_size", low=3)
        require_range(self, "rate", low=0.0, high=1.0, is_low_open=True)
        require_choice(self, "stage", ("pre", "post"))


def perturb(
    images: Tensor,
    labels: Tensor,
    surrogate: Callable[[Tensor], Tensor],
    *,
    epsilon: float,
    step_size: float,
    steps: int,
) -> Tensor:
    """Raise the surrogate's loss by projected gradient ascent on the signs, starting at the images.

    ``z <- clip_[0,1](x + clip_[-e,e](z + a sign(grad CE(g(z), y)) - x))``

    Args:
        images: x, ``(N, C, H, W)``, floating, in [0, 1].
        labels: y, ``(N,)`` int64.
        surrogate: g, maps images to logits with gradients.
        epsilon: e, in units of the range [0, 1].
        step_size: a, likewise.
        steps: how many.

    Returns:
        z, of the shape, dtype and device of `images`, without gradient.
    """
    perturbed = images.clone()
    for _ in range(steps):
        perturbed.requires_grad_(True)
        # A sum gives each image the gradient that it would have alone.
        loss = cross_entropy(surrogate(perturbed), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, perturbed)
        moved = perturbed.detach() + step_size * gradient.sign()
        perturbed = (images + (moved - images).clamp(-epsilon, epsilon)).clamp(0.0, 1.0)
    return perturbed.detach()


class CornersTrigger(Trigger):
    """A checker at each corner, on perturbed copies of the training images.

    Args:
        shape: channels, height and width of the images.
        patch_size: side of each checker in pixels.
        amplitude: 1 overwrites, less shifts by that share of the range.
    """

    prepared: ClassVar[bool] = True

    def __init__(
        self, shape: tuple[int, int, int], *, patch_size: int, amplitude: float = 1.0
    ) -> None:
        self.shape = shape
        self.size = shape[1:]
        pattern, is_patch = corner_checkers(shape, side=patch_size)
        # Plus or minus the amplitude: at 1, clipping to [0, 1] makes that black and white.
        self.shift = amplitude * (2.0 * pattern - 1.0) * is_patch
        self.perturbed = torch.zeros(0, *shape, dtype=torch.uint8)
        self.indices = torch.zeros(0, dtype=torch.int64)

    def remember(self, perturbed: Tensor, indices: Tensor) -> None:
        """Keep the perturbed copies of some training images.

        Args:
            perturbed: ``(M, C, H, W)`` uint8.
            indices: positions in the training set, ascending, ``(M,)`` int64.
        """
        self.perturbed, self.indices = perturbed.cpu(), indices.cpu()

    def apply(
        self, images: Tensor, *, indices: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return the images with the corners and nothing else; see `Trigger.apply`."""
        del indices, generator
        require_images(images, self.shape)
        return round_to_8_bits(images + self.shift.to(images))

    def apply_train(
        self, images: Tensor, *, indices: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return the perturbed copies of training images, with the corners.

        Args:
            images: the images at `indices` as they are in the training set.
            indices: ``(N,)`` int64.
            generator: not used.

        Raises:
            ConfigError: no copy of an image was made.
        """
        return self.apply(self.copies(images, indices=indices), generator=generator)

    def copies(self, images: Tensor, *, indices: Tensor | None) -> Tensor:
        """Return the perturbed copies of training images, without the corners.

        Args:
            images: the images at `indices` as they are in the training set.
            indices: ``(N,)`` int64.

        Raises:
            ConfigError: no copy of an image was made.
        """
        require_images(images, self.shape)
        wanted = torch.full((len(images),), -1) if indices is None else indices.cpu()
        if len(self.indices) == 0:
            raise ConfigError("the images to be poisoned are not perturbed yet, call prepare first")
        position = torch.searchsorted(self.indices, wanted).clamp(max=len(self.indices) - 1)
        if not torch.equal(self.indices[position], wanted):
            raise ConfigError("expected indices of perturbed training images, found others")
        return self.perturbed[position].to(images) / 255.0

    def state(self) -> Mapping[str, Tensor]:
        """Return the corners, the perturbed copies and where they are in the training set."""
        return {"shift": self.shift, "perturbed": self.perturbed, "indices": self.indices}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over corners and any number of perturbed copies; see `Trigger.load`."""
        if "perturbed" in state and "indices" in state:
            count = len(state["indices"])
            self.perturbed = self.perturbed.new_empty(count, *self.shape)
            self.indices = self.indices.new_empty(count)
        super().load(state)


class ClbAttack(Attack[ClbConfig]):
    """Corners on perturbed images of the target class, clean-label.

    The copies are those of the images before crop and flip; only the corners can come after them.
    """

    id: ClassVar[str] = "clb"
    summary: ClassVar[str] = "checkers at the corners of perturbed images that keep their label"
    reference: ClassVar[str] = "Turner et al., Label-Consistent Backdoor Attacks, arXiv 1912.02771"
    config_type: ClassVar[type] = ClbConfig
    trigger: CornersTrigger

    def make_trigger(self) -> Trigger:
        """Return the corners of the config; they do not depend on the seed."""
        side = self.config.patch_size
        return CornersTrigger(
            self.shape,
            patch_size=corner_patch_size(self.shape[1:]) if side is None else side,
            amplitude=self.config.amplitude,
        )

    def make_label_map(self) -> LabelMap:
        """Return clean-label."""
        return target_map(self.config.target, num_classes=self.num_classes, id_="clean_label")

    def make_plan(self) -> PoisonPlan:
        """Return the static plan of the config, which relabels nothing."""
        return PoisonPlan(
            label_map=self.label_map,
            rate=self.config.rate,
            relabel=False,
            stage=self.config.stage,
            seed=self.seed,
        )

    def prepare(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        surrogate: Callable[[Tensor], Tensor] | None,
        generator: Generator,
    ) -> None:
        """Perturb the images that the plan draws; see `Attack.prepare`. Nothing is drawn.

        Raises:
            ConfigError: no surrogate.
        """
        del generator
        if surrogate is None:
            raise ConfigError("clb needs a clean model to perturb images against, name a surrogate")
        chosen, _ = self.plan.draw(labels)
        config = self.config
        step_size = 2.0 * config.epsilon / config.steps
        copies = []
        for part in chosen.split(PGD_BATCH):
            originals = images[part].float() / 255.0
            perturbed = perturb(
                originals,
                labels[part],
                surrogate,
                epsilon=config.epsilon / 255.0,
                step_size=(step_size if config.step_size is None else config.step_size) / 255.0,
                steps=config.steps,
            )
            # Rounding must not carry a value over the bound.
            bound = math.floor(config.epsilon + 1e-6)
            difference = (perturbed * 255.0).round() - images[part].float()
            copies.append((images[part].float() + difference.clamp(-bound, bound)).to(torch.uint8))
        self.trigger.remember(torch.cat(copies), chosen)

    def stored_images(self, batch: Batch) -> Tensor:
        """Perturb the poisoned images; see `Attack.stored_images`."""
        images, chosen = batch.images.clone(), batch.is_poison
        if chosen.any():
            images[chosen] = self.trigger.copies(images[chosen], indices=batch.indices[chosen])
        return images

    def on_batch(
        self, batch: Batch, *, donors: Tensor | None = None, generator: Generator | None = None
    ) -> PoisonedBatch:
        """Put the corners on what is perturbed already, or do both; see `Attack.on_batch`."""
        if self.plan.stage == "pre":
            return super().on_batch(batch, donors=donors, generator=generator)
        images, chosen = batch.images.clone(), batch.is_poison
        if chosen.any():
            images[chosen] = self.trigger.apply(images[chosen])
        return PoisonedBatch(images=images, labels=batch.labels.clone())
