"""Refool: a reflection on the image, of another picture and kind for each.

Liu, Ma, Bailey & Lu, *Reflection Backdoor: A Natural Backdoor Attack on Deep Neural Networks*
(arXiv 2007.02343), with BackdoorBench's fixed transmission and, by default, its changed labels:
with labels left as they are it reports no useful success rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from modelaudit import seeds
from modelaudit.attacks.base import Attack
from modelaudit.attacks.options import require_choice, require_images, target_map
from modelaudit.attacks.pictures import natural_picture
from modelaudit.attacks.plan import PoisonPlan, Stage
from modelaudit.attacks.reflections import add_reflection, draw_reflection
from modelaudit.attacks.triggers import Trigger, round_to_8_bits
from modelaudit.config import require_range

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

    from modelaudit.attacks.label_maps import LabelMap

#: the paper's transmissions, where none is fixed
TRANSMISSIONS = (0.55, 0.95)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefoolConfig:
    """Options of Refool.

    Attributes:
        label_map: ``"one"`` poisons images of other classes and relabels them, ``"clean_label"``
            poisons the target class.
        target: the attacker's label.
        transmission: a, share of the image's own light; none draws it from [0.55, 0.95] for each
            image, as in the paper.
        reflections: pictures in the pool.
        rate: share of the eligible images (``"one"``: those not of the target class) that is
            poisoned.
        stage: trigger before (``"pre"``) or after (``"post"``) crop and flip; see `PoisonPlan`.
    """

    label_map: Literal["one", "clean_label"] = "one"
    target: int = 0
    transmission: float | None = 0.4
    reflections: int = 200
    rate: float = 0.1
    stage: Stage = "pre"

    def __post_init__(self) -> None:
        require_choice(self, "label_map", ("one", "clean_label"))
        require_range(self, "transmission", low=0.0, high=1.0)
        require_range(self, "reflections", low=1)
        require_range(self, "rate", low=0.0, high=1.0, is_low_open=True)
        require_choice(self, "stage", ("pre", "post"))


class ReflectionTrigger(Trigger):
    """Puts a reflection on each image, chosen by the index that the caller gives it.

    In training that is the image's index in the training set. Where rates are measured it is the
    image's place among those that are measured, for all-to-one the test images of other classes.

    Args:
        pool: what is reflected, ``(P, C, H, W)`` uint8.
        seed: determines which reflection an index gets, and how.
        transmission: least and largest share of the image's own light.
    """

    def __init__(self, pool: Tensor, *, seed: int, transmission: tuple[float, float]) -> None:
        _, channels, height, width = map(int, pool.shape)
        self.shape = (channels, height, width)
        self.size = (height, width)
        self.pool = pool
        self.seed = torch.tensor(seed)
        self.transmission = torch.tensor(transmission, dtype=torch.float64)

    def apply(
        self, images: Tensor, *, indices: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return the images with reflections.

        Args:
            images: see `Trigger.apply`.
            indices: number of each image; its place in the batch if None.
            generator: not used: an index always gets the same reflection.
        """
        del generator
        require_images(images, self.shape)
        places = range(len(images)) if indices is None else indices.tolist()
        seed = int(self.seed)
        low, high = self.transmission.tolist()
        triggered = torch.empty_like(images)
        for i, place in enumerate(places):
            how = draw_reflection(
                seeds.generator(seed, "reflection", place),
                pool=len(self.pool),
                transmission=(low, high),
                side=self.size[0],
            )
            picture = self.pool[how.picture].to(images) / 255.0
            triggered[i] = add_reflection(images[i], picture, how)
        return round_to_8_bits(triggered)

    def state(self) -> Mapping[str, Tensor]:
        """Return the pool, the seed of the choices and the range of transmissions."""
        return {"pool": self.pool, "seed": self.seed, "transmission": self.transmission}


class RefoolAttack(Attack[RefoolConfig]):
    """Reflections of made pictures, all-to-one or clean-label."""

    id: ClassVar[str] = "refool"
    summary: ClassVar[str] = "a reflection on the image, all-to-one or with labels left"
    reference: ClassVar[str] = "Liu et al., Reflection Backdoor, arXiv 2007.02343"
    config_type: ClassVar[type] = RefoolConfig

    def make_trigger(self) -> Trigger:
        """Return the pool of pictures and the choices, drawn from the seed."""
        config = self.config
        generator = seeds.generator(self.seed, self.id, "pool")
        pictures = [
            (natural_picture(self.shape, generator=generator) * 255.0).round().to(torch.uint8)
            for _ in range(config.reflections)
        ]
        fixed = config.transmission
        return ReflectionTrigger(
            torch.stack(pictures),
            seed=seeds.derive_seed(self.seed, self.id, "choices"),
            transmission=TRANSMISSIONS if fixed is None else (fixed, fixed),
        )

    def make_label_map(self) -> LabelMap:
        """Return all-to-one or clean-label."""
        return target_map(
            self.config.target, num_classes=self.num_classes, id_=self.config.label_map
        )

    def make_plan(self) -> PoisonPlan:
        """Return the static plan of the config; clean-label images keep their label."""
        return PoisonPlan(
            label_map=self.label_map,
            rate=self.config.rate,
            relabel=self.config.label_map == "one",
            stage=self.config.stage,
            seed=self.seed,
        )
