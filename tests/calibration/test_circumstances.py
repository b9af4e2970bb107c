from __future__ import annotations

from dataclasses import replace

import pytest

from modelaudit.calibration.circumstances import Bucket, differences, family_of
from tests.helpers.calibration import CIFAR


@pytest.mark.parametrize(
    ("images", "expected"),
    [(99, None), (100, 100), (199, 100), (200, 200), (499, 200), (500, 500), (5000, 500)],
)
def test_image_buckets_have_their_edges(images: int, expected: int | None) -> None:
    bucket = replace(CIFAR, images=images).bucket
    assert (None if bucket is None else bucket.images) == expected


@pytest.mark.parametrize(
    ("size", "expected"), [(28, 40), (40, 40), (41, 96), (96, 96), (97, 0), (224, 0)]
)
def test_input_buckets_have_their_edges(size: int, expected: int) -> None:
    bucket = replace(CIFAR, input_size=size).bucket
    assert bucket is not None
    assert bucket.input_size == expected


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (1, None),
        (2, 2),
        (4, 2),
        (5, 5),
        (20, 5),
        (21, 21),
        (99, 21),
        (100, 100),
        (1000, 100),
    ],
)
def test_class_buckets_have_their_edges(classes: int, expected: int | None) -> None:
    bucket = replace(CIFAR, classes=classes).bucket
    assert (None if bucket is None else bucket.classes) == expected


@pytest.mark.parametrize(
    ("architecture", "family"),
    [
        ("cifar_resnet18 (depth 18, width 16)", "cifar_resnet"),
        ("cifar_resnet34", "cifar_resnet"),
        ("cifar_vgg16", "cifar_vgg"),
        ("cifar_vgg16_bn (depth 16)", "cifar_vgg"),
        ("cifar_preact_resnet18", "cifar_preact_resnet"),
        ("cifar_densenet121", "cifar_densenet"),
        ("cifar_mobilenet_v2", "cifar_mobilenet_v2"),
        ("torchvision_resnet50", "torchvision_resnet"),
        ("wide_resnet", "wide_resnet"),
        ("18", "18"),
    ],
)
def test_a_family_is_the_name_without_depth(architecture: str, family: str) -> None:
    assert family_of(architecture) == family
    assert replace(CIFAR, architecture=architecture).family == family


def test_equal_buckets_have_no_differences_and_others_name_each() -> None:
    bucket = CIFAR.bucket
    assert bucket is not None
    assert differences(bucket, bucket) == ()
    other = Bucket(images=100, input_size=0, classes=100, has_batchnorm=False, has_labels=False)
    assert differences(other, bucket) == (
        "100 to 199 images instead of 500 or more",
        "inputs of 97 or more pixels instead of 40 or fewer",
        "100 or more classes instead of 5 to 20",
        "models without BatchNorm",
        "unlabelled images",
    )
    assert len(differences(bucket, other)) == 5
