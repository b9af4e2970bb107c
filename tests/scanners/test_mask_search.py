from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modelaudit.scanners._mask_search import search_mask

#: Features, classes, and the feature that a backdoor would use (methods/detectors.md §1.8.5).
_FEATURES, _CLASSES, _PLANTED = 16, 4, 7


def _planted() -> tuple[Tensor, Tensor, Tensor]:
    """Return head weights, features and labels; class 0 answers to feature 7 alone.

    The feature is on in every image, so that only a mask that drops it keeps the labels.
    """
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn((_CLASSES, _FEATURES), generator=generator)
    weights[0], weights[:, _PLANTED] = 0.0, 0.0
    weights[0, _PLANTED] = 50.0
    features = torch.rand((200, _FEATURES), generator=generator)
    features[:, _PLANTED] = 0.0
    labels = (features @ weights[1:].T).argmax(1) + 1
    features[:, _PLANTED] = 1.0
    return weights, features, labels


def _search(head_weights: Tensor, features: Tensor, labels: Tensor, **changes: object) -> Tensor:
    settings = {"weight": 0.75, "steps": 400, "learning_rate": 0.01, "batch": 128, "seed": 0}
    values = {**settings, **changes}
    seed = values.pop("seed")
    return search_mask(
        lambda h: h.flatten(1) @ head_weights.T,
        features,
        labels,
        generator=torch.Generator().manual_seed(int(str(seed))),
        **values,  # type: ignore[arg-type]  # a test's shorthand
    )


def test_a_planted_feature_is_left_to_the_negative_mask() -> None:
    weights, features, labels = _planted()
    mask = _search(weights, features, labels)
    assert mask[_PLANTED] < 0.1
    assert (((1 - mask) * features) @ weights.T).argmax(1).eq(0).all()
    right = ((mask * features) @ weights.T).argmax(1) == labels
    assert right.double().mean() > 0.9


def test_the_mask_stays_in_the_unit_interval() -> None:
    weights, features, labels = _planted()
    mask = _search(weights, features, labels, learning_rate=0.5, steps=20)
    assert mask.min() == 0
    assert mask.max() == 1


def test_the_search_repeats_with_its_seed() -> None:
    planted = _planted()
    one, two = (_search(*planted, steps=5, seed=3) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, _search(*planted, steps=5, seed=4))


def test_the_mask_has_the_shape_of_one_images_features() -> None:
    weights, features, labels = _planted()
    mask = _search(weights, features.view(-1, 4, 2, 2), labels, steps=2)
    assert mask.shape == (4, 2, 2)
    assert not mask.requires_grad


def test_the_first_step_follows_the_paper_objective() -> None:
    weights, features, labels = _planted()
    mask = _search(weights, features, labels, steps=1, batch=64)
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(_FEATURES, generator=generator)
    rows = torch.randint(len(features), (64,), generator=generator)
    variable = start.clone().requires_grad_()
    h, y = features[rows], labels[rows]
    loss = F.cross_entropy((variable * h) @ weights.T, y)
    loss = loss - F.cross_entropy(((1 - variable) * h) @ weights.T, y)
    loss = loss + 0.75 * variable.abs().sum().log()
    (grad,) = torch.autograd.grad(loss, variable)
    # Adam's first step is the learning rate against the gradient's sign.
    assert torch.allclose(mask, (start - 0.01 * grad.sign()).clamp(0, 1), atol=1e-4)


def test_nothing_is_written_to_features_or_labels() -> None:
    weights, features, labels = _planted()
    copies = features.clone(), labels.clone()
    _search(weights, features, labels, steps=3)
    assert torch.equal(features, copies[0])
    assert torch.equal(labels, copies[1])
