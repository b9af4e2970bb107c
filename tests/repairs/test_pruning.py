from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn import functional

from modelaudit.architectures.cifar_preact_resnet import CifarPreActResNet
from modelaudit.errors import RepairError, ShapeError
from modelaudit.repairs import PruneMode, prune_mask
from modelaudit.repairs._feeders import sole_feeders
from modelaudit.repairs.pruning import zero_channels
from tests.helpers import models

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.repairs.pruning import Neuron
    from modelaudit.suspect import Suspect


def output_of(suspect: Suspect, name: str, images: Tensor) -> Tensor:
    kept: list[Tensor] = []
    handle = suspect.module.get_submodule(name).register_forward_hook(
        lambda _m, _a, out: kept.append(out)
    )
    with torch.no_grad():
        suspect.logits(images)
    handle.remove()
    return kept[0]


def prune(suspect: Suspect, neurons: list[Neuron], mode: PruneMode = PruneMode.ZERO) -> None:
    prune_mask(suspect, neurons, mode=mode).apply(suspect.module)


def test_zero_mode_makes_the_channel_exactly_zero_and_leaves_the_others() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    images = models.images(4)
    before = output_of(suspect, "norm1", images)
    prune(suspect, [("norm1", 2)])
    after = output_of(suspect, "norm1", images)
    assert bool((after[:, 2] == 0).all())
    others = [i for i in range(8) if i != 2]
    assert torch.equal(after[:, others], before[:, others])


def test_official_mode_leaves_a_constant_beta_behind() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    norm = suspect.module.get_submodule("norm1")
    assert isinstance(norm, nn.BatchNorm2d)
    conv = suspect.module.get_submodule("conv1")
    filters = copy.deepcopy(conv.state_dict())
    beta = norm.bias.detach().clone()
    prune(suspect, [("norm1", 2)], PruneMode.OFFICIAL)
    after = output_of(suspect, "norm1", models.images(4))
    assert bool((after[:, 2] == beta[2]).all())
    assert torch.equal(norm.bias, beta)
    assert all(torch.equal(filters[k], v) for k, v in conv.state_dict().items())


def test_zero_mode_takes_filter_and_bias_of_a_convolution_that_feeds_the_norm_alone() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    prune(suspect, [("norm2", 5)])
    conv = suspect.module.get_submodule("conv2")
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    assert bool((conv.weight[5] == 0).all())
    assert conv.bias[5].item() == 0
    assert bool((conv.weight[4] != 0).any())


def test_buffers_stay_as_they_are() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    before = {k: v.clone() for k, v in suspect.module.named_buffers()}
    prune(suspect, [("norm1", 0), ("norm2", 3)])
    assert all(torch.equal(before[k], v) for k, v in suspect.module.named_buffers())


def test_resnets_norms_are_each_fed_by_one_convolution() -> None:
    suspect = models.suspect_of(models.tiny_resnet())
    feeders = sole_feeders(suspect)
    assert set(feeders) == {site.name for site in suspect.sites}
    assert feeders["bn1"] == "conv1"


def test_a_filter_whose_output_goes_on_to_a_shortcut_is_left_alone() -> None:
    net = models.initialised(CifarPreActResNet(depth=18, width=4, num_classes=4), 0)
    suspect = models.suspect_of(net)
    feeders = sole_feeders(suspect)
    # The first norm of the first block reads the stem, which the block's sum reads as well; the
    # second norm of every block reads its own convolution.
    first, second = (site for site in suspect.sites[:2])
    assert first.upstream is not None
    assert first.name not in feeders
    assert feeders[second.name] == second.upstream
    stem = net.get_submodule(first.upstream)
    filters = copy.deepcopy(stem.state_dict())
    prune(suspect, [(first.name, 1)])
    assert all(torch.equal(filters[k], v) for k, v in stem.state_dict().items())
    assert bool((output_of(suspect, first.name, models.images(2))[:, 1] == 0).all())


def test_densenet_loses_gamma_and_beta_alone_where_outputs_are_concatenated() -> None:
    suspect = models.suspect_of(models.tiny_densenet())
    # norm3 reads conv2 and nothing else does; the stem goes into the concatenation too.
    assert sole_feeders(suspect) == {"norm3": "conv2"}
    mask = prune_mask(suspect, [("norm1", 0), ("norm2", 1), ("norm3", 2)])
    assert [name for name, _ in mask.rows] == [
        *("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"),
        *("norm3.weight", "norm3.bias", "conv2.weight"),
    ]


class SharedFilter(nn.Module):
    """One convolution called twice, each time before another norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(3)
        self.norm2 = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, models.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv(x)))
        x = torch.relu(self.norm2(self.conv(x)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def test_a_filter_that_runs_twice_is_left_alone() -> None:
    suspect = models.suspect_of(models.initialised(SharedFilter(), 0))
    assert sole_feeders(suspect) == {}


class InPlaceBranch(nn.Module):
    """A branch reads a convolution's output through an in-place operation on a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(8, models.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        raw = self.conv(x)
        pooled = functional.adaptive_avg_pool2d(raw, 1)
        normed = torch.relu(self.norm(raw)).mean((2, 3))
        out: Tensor = self.head(torch.cat([normed, pooled.flatten(1)], 1))
        return out


def test_a_filter_that_is_read_by_a_pooling_as_well_is_left_alone() -> None:
    suspect = models.suspect_of(models.initialised(InPlaceBranch(), 0))
    assert suspect.sites[0].upstream == "conv"
    assert sole_feeders(suspect) == {}


def test_the_last_norm_of_a_branch_leaves_the_shortcuts_part_of_the_sum() -> None:
    suspect = models.suspect_of(models.tiny_resnet())
    images = models.images(3)
    shortcut = output_of(suspect, "layer2.0.shortcut.1", images)
    prune(suspect, [("layer2.0.bn2", 1)])
    assert bool((output_of(suspect, "layer2.0.bn2", images)[:, 1] == 0).all())
    block = output_of(suspect, "layer2.0", images)
    torch.testing.assert_close(block[:, 1], shortcut[:, 1].relu())
    assert bool((shortcut[:, 1] != 0).any())


@pytest.mark.parametrize("build", [models.tiny_plain, models.tiny_groupnorm, models.tiny_tokens])
def test_layers_without_batchnorm_lose_row_and_bias(build: object) -> None:
    assert callable(build)
    suspect = models.suspect_of(build())
    for site in suspect.sites:
        prune(suspect, [(site.name, 1)])
        out = output_of(suspect, site.name, models.images(2)).movedim(site.channel_dim, 0)
        assert bool((out[1] == 0).all())
        assert bool((out[0] != 0).any())


def test_a_norm_without_a_scale_cannot_be_pruned() -> None:
    net = models.initialised(
        models.ConvNet(lambda width: nn.BatchNorm2d(width, affine=False)), seed=0
    )
    with pytest.raises(RepairError, match="no scale"):
        prune_mask(models.suspect_of(net), [("norm1", 0)])


@pytest.mark.parametrize("neuron", [("norm1", 8), ("norm1", -1), ("nope", 0)])
def test_a_neuron_that_is_not_there_raises(neuron: tuple[str, int]) -> None:
    with pytest.raises(ShapeError, match=neuron[0]):
        prune_mask(models.suspect_of(models.tiny_bn()), [neuron])


def test_no_neurons_give_a_mask_that_does_nothing() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    before = copy.deepcopy(suspect.module.state_dict())
    mask = prune_mask(suspect, [])
    mask.apply(suspect.module)
    assert mask.holds(suspect.module)
    assert mask.by_layer() == ()
    assert all(torch.equal(before[k], v) for k, v in suspect.module.state_dict().items())


def test_a_mask_lists_layers_in_execution_order() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    mask = prune_mask(suspect, [("norm2", 3), ("norm1", 4), ("norm1", 1), ("norm1", 4)])
    assert mask.neurons == (("norm1", 1), ("norm1", 4), ("norm2", 3))
    assert mask.by_layer() == (("norm1", (1, 4)), ("norm2", (3,)))


def test_a_mask_of_another_model_raises() -> None:
    mask = prune_mask(models.suspect_of(models.tiny_bn(width=16)), [("norm1", 12)])
    with pytest.raises(ShapeError, match="another model"):
        mask.apply(models.tiny_bn(width=8))


def step(suspect: Suspect, optimiser: torch.optim.Optimizer) -> None:
    logits = suspect.logits(models.images(16))
    optimiser.zero_grad()
    functional.cross_entropy(logits, models.labels(16)).backward()
    optimiser.step()


def trained_steps(*, is_masked: bool) -> tuple[Suspect, bool]:
    """Train four steps, pruned after the first; say whether the pruned neurons are still zero."""
    suspect = models.suspect_of(models.tiny_resnet())
    optimiser = torch.optim.SGD(suspect.module.parameters(), lr=0.1, momentum=0.9)
    # The last norm of a branch: a sum follows, so that its beta has a gradient.
    mask = prune_mask(suspect, [("layer2.0.bn2", 1), ("layer3.1.bn2", 0)])
    step(suspect, optimiser)
    mask.apply(suspect.module)
    for _ in range(3):
        if is_masked:
            mask.apply(suspect.module, optimiser)
        step(suspect, optimiser)
        if is_masked:
            mask.apply(suspect.module, optimiser)
    return suspect, mask.holds(suspect.module)


def test_training_revives_a_pruned_neuron_unless_the_mask_is_applied_again() -> None:
    assert not trained_steps(is_masked=False)[1]
    assert trained_steps(is_masked=True)[1]


def test_momentum_of_pruned_rows_is_zeroed_and_that_of_others_kept() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    optimiser = torch.optim.SGD(suspect.module.parameters(), lr=0.1, momentum=0.9)
    step(suspect, optimiser)
    mask = prune_mask(suspect, [("norm1", 2)])
    weight = dict(suspect.module.named_parameters())["conv1.weight"]
    momentum = optimiser.state[weight]["momentum_buffer"]
    before = momentum.clone()
    assert bool((before[2] != 0).any())
    mask.apply(suspect.module, optimiser)
    assert bool((momentum[2] == 0).all())
    assert torch.equal(momentum[3], before[3])


def test_gradients_of_pruned_rows_are_zeroed() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    functional.cross_entropy(suspect.logits(models.images(8)), models.labels(8)).backward()
    mask = prune_mask(suspect, [("norm1", 2)])
    mask.mask_gradients(suspect.module)
    grad = dict(suspect.module.named_parameters())["norm1.weight"].grad
    assert grad is not None
    assert grad[2].item() == 0
    assert grad[1].item() != 0


def test_channels_that_are_zero_already_are_found_with_their_shifts() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    assert zero_channels(suspect) is None
    prune(suspect, [("norm1", 2), ("norm2", 5)])
    mask = zero_channels(suspect)
    assert mask is not None
    assert (mask.neurons, mask.mode) == ((("norm1", 2), ("norm2", 5)), PruneMode.ZERO)
    assert dict(mask.rows)["norm1.bias"] == (2,)
    prune(suspect, [("norm1", 3)], PruneMode.OFFICIAL)
    mask = zero_channels(suspect)
    assert mask is not None
    assert (len(mask.neurons), mask.mode) == (3, PruneMode.OFFICIAL)
    # What is left of this channel is its shift, which may be trained.
    assert dict(mask.rows)["norm1.weight"] == (2, 3)
    assert dict(mask.rows)["norm1.bias"] == (2,)


def test_a_convolution_without_batchnorm_is_zero_where_its_filter_is() -> None:
    suspect = models.suspect_of(models.tiny_plain())
    site = suspect.sites[0]
    prune(suspect, [(site.name, 1)])
    mask = zero_channels(suspect)
    assert mask is not None
    assert mask.neurons == ((site.name, 1),)
