from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from modelaudit.repairs._gates import gate_gradients
from modelaudit.scanners._channels import prune_edits
from tests.helpers import models
from tests.helpers.repairs import logits_of

NETS = [models.tiny_bn, models.tiny_plain, models.tiny_groupnorm, models.tiny_tokens]


def first(logits: Tensor, _rows: Tensor) -> Tensor:
    return logits[:, 0]


@pytest.mark.parametrize("build", NETS)
def test_gradients_are_those_of_one_image_after_another(build: Callable[[], nn.Module]) -> None:
    suspect = models.suspect_of(build())
    images = models.images(3)
    mean, square = gate_gradients(suspect, images, first, batch_size=8)
    single = torch.stack(
        [gate_gradients(suspect, images[i : i + 1], first, batch_size=1)[0] for i in range(3)]
    )
    torch.testing.assert_close(mean, single.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(square, single.square().mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("build", NETS)
def test_gradients_at_some_sites_are_those_of_all_sites(build: Callable[[], nn.Module]) -> None:
    suspect = models.suspect_of(build())
    images = models.images(3)
    mean, square = gate_gradients(suspect, images, first, batch_size=8)
    last = suspect.sites[-1]
    some, some_square = gate_gradients(suspect, images, first, batch_size=8, sites=(last,))
    torch.testing.assert_close(some[-last.channels :], mean[-last.channels :])
    torch.testing.assert_close(some_square[-last.channels :], square[-last.channels :])
    assert not some[: -last.channels].any()
    assert len(some) == len(mean)


def test_a_gradient_is_the_slope_of_closing_the_gate() -> None:
    suspect = models.suspect_of(models.tiny_plain())
    images = models.images(4)
    mean, _ = gate_gradients(suspect, images, first, batch_size=4)
    # The features enter the classifier linearly: closing such a gate takes its gradient away.
    site = suspect.sites[-1]
    with torch.no_grad():
        suspect.module.get_submodule(site.name).get_parameter("bias").add_(10.0)
    offset = sum(s.channels for s in suspect.sites[:-1])
    mean, _ = gate_gradients(suspect, images, first, batch_size=4)
    before = logits_of(suspect, images)[:, 0].mean()
    with suspect.edited(prune_edits(suspect, [(site.name, 3)])):
        after = logits_of(suspect, images)[:, 0].mean()
    assert float(before - after) == pytest.approx(float(mean[offset + 3]), rel=1e-3)


def test_rows_tell_which_images_a_batch_holds() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    seen: list[int] = []

    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        seen.extend(rows.tolist())
        return logits.sum(1)

    gate_gradients(suspect, models.images(7), objective, batch_size=3)
    assert seen == list(range(7))
    assert suspect.passes.forward_backward == 7


def test_no_hook_stays_after_an_error() -> None:
    suspect = models.suspect_of(models.tiny_bn())

    def fails(_logits: Tensor, _rows: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gate_gradients(suspect, models.images(2), fails, batch_size=2)
    assert not any(len(m._forward_hooks) for m in suspect.module.modules())
