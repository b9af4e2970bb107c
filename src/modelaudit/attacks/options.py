"""Checks of options and inputs that several attacks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.attacks.label_maps import AllToAll, AllToOne, CleanLabel, LabelMap
from modelaudit.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from torch import Generator, Tensor


def require_choice(owner: object, field: str, choices: tuple[str, ...]) -> None:
    """Raise unless ``owner.field`` is one of the choices.

    Raises:
        ConfigError: naming field, choices and value.
    """
    value = getattr(owner, field)
    if value not in choices:
        raise ConfigError(f"{field} must be one of {choices!r}, got {value!r}")


def require_images(images: Tensor, shape: tuple[int, int, int]) -> None:
    """Raise unless `images` is a batch of the shape (channels, height, width).

    Raises:
        ShapeError: carrying both shapes.
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(shape):
        raise ShapeError(
            f"expected images of shape (N, {', '.join(map(str, shape))}), "
            f"got {tuple(images.shape)!r}"
        )


def require_generator(generator: Generator | None) -> Generator:
    """Return the generator that a stochastic trigger needs.

    Raises:
        ConfigError: there is none.
    """
    if generator is None:
        raise ConfigError("this trigger draws at random, expected a generator, got None")
    return generator


def target_map(target: int, *, num_classes: int, id_: str = "one") -> LabelMap:
    """Return the label map of an id: all-to-one, all-to-all or clean-label.

    Args:
        target: the attacker's label; not used by ``"all"``.
        num_classes: classes K of the data set.
        id_: ``"one"``, ``"all"`` or ``"clean_label"``.

    Raises:
        ConfigError: the target is none of the classes.
    """
    if id_ == AllToAll.id:
        return AllToAll(num_classes=num_classes)
    if not 0 <= target < num_classes:
        raise ConfigError(f"target must be one of {num_classes} classes, got {target!r}")
    return CleanLabel(target=target) if id_ == CleanLabel.id else AllToOne(target=target)
