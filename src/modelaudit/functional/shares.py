"""Where wrong predictions go: shares per class, and the map from true to predicted class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modelaudit.errors import ShapeError
from modelaudit.functional._checks import require_dimensions, require_integer

#: In a map without a direction for a class.
NO_ARROW = -1
#: part of what a push leads to its target from which a control that leads there is as good
_AS_FAR = 0.8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrowMap:
    """For each class, where its wrongly predicted images go.

    Attributes:
        targets: the most frequent wrong prediction of each class; -1 for a class without errors.
            Shape ``(K,)``, int64.
        shares: A_c, the share of the class's errors that goes there; 0 without errors. Shape
            ``(K,)``, float64, in [0, 1].
        errors: number of errors behind each share. Shape ``(K,)``, int64.
    """

    targets: Tensor
    shares: Tensor
    errors: Tensor


def _check(predictions: Tensor, labels: Tensor, num_classes: int) -> None:
    require_integer("predictions", predictions)
    require_integer("labels", labels)
    require_dimensions("labels", labels, 1)
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes!r}")
    if predictions.ndim not in (1, 2) or predictions.shape[-1] != labels.shape[0]:
        raise ShapeError(
            f"predictions must have shape (N,) or (R, N) with N = {labels.shape[0]} labels, got "
            f"{tuple(predictions.shape)!r}"
        )
    for name, tensor in (("predictions", predictions), ("labels", labels)):
        if tensor.numel() and not bool(((tensor >= 0) & (tensor < num_classes)).all()):
            raise ValueError(
                f"{name} must be class indices from 0 to {num_classes - 1}, got values from "
                f"{int(tensor.min())} to {int(tensor.max())}"
            )


def off_class_counts(
    predictions: Tensor, labels: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Count, for each class, the images of other classes and those of them predicted as it.

    The numerator and denominator of `off_class_share`, for binomial bounds and `log_odds`.

    Args:
        predictions: predicted classes. Shape ``(N,)`` or ``(R, N)``, integer, any device.
        labels: true classes. Shape ``(N,)``, integer, same device.
        num_classes: K.

    Returns:
        Successes #{p = t, y ≠ t} and trials #{y ≠ t}; shape ``(K,)`` or ``(R, K)`` both, int64,
        device of `predictions`.

    Raises:
        ShapeError: the shapes do not fit.
        DtypeError: an argument is not integer.
        ValueError: a class index is outside 0..K - 1.
    """
    _check(predictions, labels, num_classes)
    rows = torch.atleast_2d(predictions).to(torch.int64)
    offsets = num_classes * torch.arange(rows.shape[0], device=rows.device).unsqueeze(1)
    wrong = (rows + offsets)[rows != labels]
    successes = torch.bincount(wrong, minlength=num_classes * rows.shape[0])
    successes = successes.reshape(*predictions.shape[:-1], num_classes)
    trials = labels.shape[0] - torch.bincount(labels.to(torch.int64), minlength=num_classes)
    return successes, trials.expand_as(successes).clone()


def off_class_share(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return s_t, the share of the other classes' images that is predicted as class t.

    methods/detectors.md §0.1: the success rate of an untargeted perturbation toward t, without the
    base rate that a plain histogram of predictions contains. Arguments and errors as
    `off_class_counts`.

    Returns:
        Shape ``(K,)``, or ``(R, K)`` for batched predictions; float64, device of `predictions`, in
        [0, 1]. 0 for a class that all images belong to, and without images: nothing was sent there.
    """
    successes, trials = off_class_counts(predictions, labels, num_classes)
    return successes.to(torch.float64) / trials.clamp_min(1)


def error_concentration(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return c_t, the share of all wrong predictions that is class t.

    methods/detectors.md §0.1. Arguments and errors as `off_class_counts`.

    Returns:
        Shape ``(K,)`` or ``(R, K)``, float64, device of `predictions`; sums to 1, or is all zero
        when every prediction is right.
    """
    successes, _ = off_class_counts(predictions, labels, num_classes)
    return successes.to(torch.float64) / successes.sum(-1, keepdim=True).clamp_min(1)


def arrow_map(predictions: Tensor, labels: Tensor, num_classes: int) -> ArrowMap:
    """Return where the wrongly predicted images of each class go, and how unanimously.

    methods/detectors.md §0.1: A_c = max over t ≠ c of #{p = t, y = c} / #{y = c, p ≠ c}. A share
    that rests on few errors means nothing; the map says how many there were.

    Args:
        predictions: predicted classes. Shape ``(N,)``, integer, any device; or ``(R, N)``, whose
            rows are counted together.
        labels: true classes. Shape ``(N,)``, integer, same device.
        num_classes: K.

    Returns:
        The map; its tensors are on the device of `predictions`.

    Raises:
        ShapeError: the shapes do not fit.
        DtypeError: an argument is not integer.
        ValueError: a class index is outside 0..K - 1.
    """
    _check(predictions, labels, num_classes)
    wrong = predictions != labels
    pairs = (labels.to(torch.int64) * num_classes + predictions)[wrong]
    confusion = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
    errors = confusion.sum(1)
    most = confusion.max(1)
    return ArrowMap(
        targets=torch.where(errors > 0, most.indices, NO_ARROW),
        shares=most.values.to(torch.float64) / errors.clamp_min(1),
        errors=errors,
    )


def is_permutation_like(
    arrows: ArrowMap, *, min_mean_share: float = 0.5, max_collision_fraction: float = 0.2
) -> bool:
    """Say whether the arrows look like an all-to-all backdoor: each class to one of its own.

    [O] methods/detectors.md §0.1: few arrows share a target, and the shares are large on average.
    With two classes every map is a permutation, so that fewer than three classes never qualify.

    Args:
        arrows: the map of one model under perturbation.
        min_mean_share: least mean of A_c over the K classes, classes without errors counting as 0.
        max_collision_fraction: largest fraction of classes that have no arrow, or one to a target
            that another class already has.

    Returns:
        True when both hold.
    """
    classes = arrows.targets.shape[0]
    if classes < 3 or float(arrows.shares.mean()) < min_mean_share:
        return False
    aimed_at = torch.bincount(arrows.targets[arrows.targets != NO_ARROW], minlength=classes)
    distinct = int((aimed_at > 0).sum())
    return classes - distinct <= max_collision_fraction * classes


def control_leads_as_far(control: float, lower: float) -> bool:
    """Return whether a control leads as many images to the target as a push, or nearly.

    One that leads four fifths as many shows that any such push leads there.

    Args:
        control: share of other classes' images that the control leads there, in [0, 1].
        lower: lower bound of the push's own share, in [0, 1].
    """
    return control >= _AS_FAR * lower
