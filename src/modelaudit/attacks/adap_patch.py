"""Adap-Patch: one of four faint patches in training, other combinations at test time.

Qi et al., arXiv 2205.13613; rates of BAN's blend variant (arXiv 2405.19928). Patches of random
colours, drawn from the seed, stand where the paper has logos.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from modelaudit import seeds
from modelaudit.attacks.adaptive import AdaptiveAttack
from modelaudit.attacks.options import require_choice, require_images
from modelaudit.attacks.patches import corner_checkers, corner_patch_size
from modelaudit.attacks.pictures import colour_patch
from modelaudit.attacks.plan import Stage
from modelaudit.attacks.triggers import Trigger, round_to_8_bits
from modelaudit.config import require_range
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator

#: image side for which the boxes are given, in pixels
REFERENCE_SIDE = 32
#: first row, first column and side of the paper's "phoenix", "firefox" and trojan square
CORNER_BOX, LOGO_BOX, SQUARE_BOX = (27, 27, 5), (1, 18, 13), (21, 21, 8)
#: opacities in training: of those three, with the checkers at the four corners between them
TRAIN_ALPHAS = (0.5, 0.2, 0.5, 0.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapPatchConfig:
    """Options of Adap-Patch; rates are BAN's for Adap-Blend, the paper has 0.003 and 0.006.

    Attributes:
        target: the attacker's label.
        test_patches: ``"corners"`` shows a patch at both lower corners and checkers at all four,
            which the paper does on CIFAR-10; ``"squares"`` the two large patches, as on GTSRB.
        rate: share of all images that is poisoned.
        cover_rate: share of all images that keeps its label under the training trigger.
        stage: trigger before (``"pre"``) or after (``"post"``) crop and flip; see `PoisonPlan`.
    """

    target: int = 0
    test_patches: Literal["corners", "squares"] = "corners"
    rate: float = 0.05
    cover_rate: float = 0.05
    stage: Stage = "post"

    def __post_init__(self) -> None:
        require_choice(self, "test_patches", ("corners", "squares"))
        require_range(self, "rate", low=0.0, high=1.0, is_low_open=True)
        require_range(self, "cover_rate", low=0.0, high=1.0)
        require_choice(self, "stage", ("pre", "post"))


class PatchesTrigger(Trigger):
    """Mixes in one of several patches in training, and a fixed combination at test time.

    Args:
        patterns: training patches on whole images, ``(P, C, H, W)``, float32 in [0, 1].
        opacities: of their pixels, ``(P, H, W)``, float32; 0 beside the patch.
        test_pattern: ``(C, H, W)``, float32 in [0, 1].
        test_opacity: ``(H, W)``, float32.
    """

    def __init__(
        self, patterns: Tensor, opacities: Tensor, *, test_pattern: Tensor, test_opacity: Tensor
    ) -> None:
        channels, height, width = map(int, test_pattern.shape)
        self.shape = (channels, height, width)
        self.size = (height, width)
        self.patterns, self.opacities = round_to_8_bits(patterns), opacities
        self.test_pattern, self.test_opacity = round_to_8_bits(test_pattern), test_opacity

    def apply(
        self, images: Tensor, *, indices: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return the images with the test combination; see `Trigger.apply`."""
        del indices, generator
        require_images(images, self.shape)
        return _mix(images, self.test_pattern, self.test_opacity)

    def apply_train(
        self, images: Tensor, *, indices: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return each image with one patch: the one at its index modulo their number.

        Args:
            images: ``(N, C, H, W)``.
            indices: index of each image in the training set; its place in the batch if None.
            generator: not used.
        """
        del generator
        require_images(images, self.shape)
        places = torch.arange(len(images)) if indices is None else indices.cpu()
        which = places % len(self.patterns)
        return _mix(images, self.patterns[which], self.opacities[which].unsqueeze(1))

    def cover(
        self, images: Tensor, *, donors: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return the same as `apply_train` by place in the batch; see `Trigger.cover`."""
        del donors
        return self.apply_train(images, generator=generator)

    def state(self) -> Mapping[str, Tensor]:
        """Return all patches with their opacities."""
        return {
            "patterns": self.patterns,
            "opacities": self.opacities,
            "test_pattern": self.test_pattern,
            "test_opacity": self.test_opacity,
        }


class AdapPatchAttack(AdaptiveAttack[AdapPatchConfig]):
    """One of four faint patches in training, two kinds at full opacity at test time, all-to-one."""

    id: ClassVar[str] = "adap_patch"
    summary: ClassVar[str] = "one of four faint patches in training, several at test time"
    reference: ClassVar[str] = "Qi et al., Circumventing Backdoor Defenses, arXiv 2205.13613"
    config_type: ClassVar[type] = AdapPatchConfig

    def make_trigger(self) -> Trigger:
        """Return patches of random colours, drawn from the seed, and checkers."""
        corner, logo, square = (
            self._coloured(box, name)
            for box, name in ((CORNER_BOX, "corner"), (LOGO_BOX, "logo"), (SQUARE_BOX, "square"))
        )
        checkers, is_checker = corner_checkers(self.shape, side=corner_patch_size(self.shape[1:]))
        four_corners = (checkers, is_checker.float())
        trained = (corner, logo, four_corners, square)
        shown: tuple[tuple[Tensor, Tensor], ...]
        if self.config.test_patches == "corners":
            # Flips in training show the patch at the other corner as its mirror image.
            mirrored = (corner[0].flip(-1), corner[1].flip(-1))
            shown = (corner, mirrored, four_corners)
        else:
            shown = (logo, square)
        test_pattern, test_opacity = torch.zeros(self.shape), torch.zeros(self.shape[1:])
        for pattern, opacity in shown:
            test_pattern = torch.where(opacity > 0, pattern, test_pattern)
            test_opacity = torch.maximum(test_opacity, opacity)
        return PatchesTrigger(
            torch.stack([pattern for pattern, _ in trained]),
            torch.stack(
                [a * opacity for a, (_, opacity) in zip(TRAIN_ALPHAS, trained, strict=True)]
            ),
            test_pattern=test_pattern,
            test_opacity=test_opacity,
        )

    def _coloured(self, box: tuple[int, int, int], name: str) -> tuple[Tensor, Tensor]:
        """Return a patch of random colours on a whole image, and 1 where it is."""
        channels, height, width = self.shape
        top, left, bottom, right = (
            round(edge * side / REFERENCE_SIDE)
            for edge, side in (
                (box[0], height),
                (box[1], width),
                (box[0] + box[2], height),
                (box[1] + box[2], width),
            )
        )
        if bottom == top or right == left:
            raise ConfigError(f"expected images with room for patches, got {(height, width)!r}")
        pattern, opacity = torch.zeros(self.shape), torch.zeros(height, width)
        generator = seeds.generator(self.seed, self.id, name)
        pattern[:, top:bottom, left:right] = colour_patch(
            (channels, bottom - top, right - left), generator=generator
        )
        opacity[top:bottom, left:right] = 1.0
        return pattern, opacity


def _mix(images: Tensor, pattern: Tensor, opacity: Tensor) -> Tensor:
    difference = pattern.to(images) - images
    return round_to_8_bits(images + opacity.to(images) * difference)
