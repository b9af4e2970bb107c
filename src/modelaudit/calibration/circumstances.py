"""Under which circumstances a model was scanned, and the buckets in which they compare."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Lower ends of the buckets; the last one is open. Fewer images or classes are in no bucket.
IMAGE_BUCKETS = (100, 200, 500)
CLASS_BUCKETS = (2, 5, 21, 100)
#: Upper ends of the buckets of the input's side in pixels; larger ones share the last bucket.
INPUT_BUCKETS = (40, 96)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """What has to agree for two models' scores to be comparable.

    Attributes:
        images: lower end of the bucket of the number of clean images: 100, 200 or 500.
        input_size: upper end of the bucket of the input's side in pixels: 40, 96, or 0 for more.
        classes: lower end of the bucket of the number of classes: 2, 5, 21 or 100.
        has_batchnorm: whether the model has BatchNorm with running statistics.
        has_labels: whether the clean images are labelled.
    """

    images: int
    input_size: int
    classes: int
    has_batchnorm: bool
    has_labels: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """One scan's circumstances.

    Attributes:
        architecture: name of the architecture, such as ``"cifar_resnet18"``.
        images: clean images used.
        input_size: side of the input in pixels.
        classes: outputs of the model, K.
        has_batchnorm: whether the model has BatchNorm with running statistics.
        has_labels: whether the clean images are labelled.
    """

    architecture: str
    images: int
    input_size: int
    classes: int
    has_batchnorm: bool
    has_labels: bool = True

    @property
    def family(self) -> str:
        """The architecture's family."""
        return family_of(self.architecture)

    @property
    def bucket(self) -> Bucket | None:
        """The bucket, or None with too few images or classes for any."""
        images = _last_not_above(IMAGE_BUCKETS, self.images)
        classes = _last_not_above(CLASS_BUCKETS, self.classes)
        if images is None or classes is None:
            return None
        return Bucket(
            images=images,
            input_size=next((end for end in INPUT_BUCKETS if self.input_size <= end), 0),
            classes=classes,
            has_batchnorm=self.has_batchnorm,
            has_labels=self.has_labels,
        )


def family_of(architecture: str) -> str:
    """Return an architecture's family: its name without depth, arguments and mark of BatchNorm.

    Example:
        >>> family_of("cifar_resnet18 (depth 18, width 16)"), family_of("cifar_vgg16_bn")
        ('cifar_resnet', 'cifar_vgg')
    """
    name = architecture.partition(" ")[0].removesuffix("_bn")
    # the 2 of mobilenet_v2 is a name, the 18 of resnet18 a depth
    return re.sub(r"_+", "_", re.sub(r"(?<!_v)(?<!\d)\d+", "", name)).strip("_") or name


def differences(wanted: Bucket, found: Bucket) -> tuple[str, ...]:
    """Return in words how a population's bucket differs from the suspect's; empty if equal."""
    said = []
    if wanted.images != found.images:
        said.append(f"{_images_text(wanted.images)} images instead of {_images_text(found.images)}")
    if wanted.input_size != found.input_size:
        said.append(
            f"inputs of {_input_text(wanted.input_size)} pixels instead of "
            f"{_input_text(found.input_size)}"
        )
    if wanted.classes != found.classes:
        said.append(
            f"{_classes_text(wanted.classes)} classes instead of {_classes_text(found.classes)}"
        )
    if wanted.has_batchnorm != found.has_batchnorm:
        said.append(f"models {'with' if wanted.has_batchnorm else 'without'} BatchNorm")
    if wanted.has_labels != found.has_labels:
        said.append(f"{'labelled' if wanted.has_labels else 'unlabelled'} images")
    return tuple(said)


def _last_not_above(edges: tuple[int, ...], value: int) -> int | None:
    return next((edge for edge in reversed(edges) if edge <= value), None)


def _open_range(edges: tuple[int, ...], low: int) -> str:
    index = edges.index(low)
    return f"{low} to {edges[index + 1] - 1}" if index + 1 < len(edges) else f"{low} or more"


def _images_text(low: int) -> str:
    return _open_range(IMAGE_BUCKETS, low)


def _classes_text(low: int) -> str:
    return _open_range(CLASS_BUCKETS, low)


def _input_text(high: int) -> str:
    return {40: "40 or fewer", 96: "41 to 96", 0: "97 or more"}[high]
