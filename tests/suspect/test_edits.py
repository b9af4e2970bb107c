from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from modelaudit.suspect import BatchNormMode, SiteEdit, Suspect, state_digest
from tests.helpers import models
from tests.helpers.models import BUILDS, distance, draw, images, initialised, scaled, suspect_of

if TYPE_CHECKING:
    pass

every_kind = pytest.mark.parametrize("name", BUILDS)
ESTIMATED = [BatchNormMode.BATCH, BatchNormMode.RECAL]


def noise(suspect: Suspect, *, epsilon: float = 0.3, seed: int = 5) -> dict[str, SiteEdit]:
    """Noise in [-epsilon, epsilon] on every channel of every site."""
    edits = {}
    for index, site in enumerate(suspect.sites):
        weight, bias = draw((2, site.channels), seed + index).tanh() * epsilon
        edits[site.name] = SiteEdit(weight_noise=weight, bias_noise=bias)
    return edits


def normalised(batch: Tensor) -> Tensor:
    return (batch - 0.5) / 0.5


def scaled_parameters(suspect: Suspect, edits: dict[str, SiteEdit]) -> dict[str, Tensor]:
    """What [BAN24] Eq. 3 makes of the parameters: weight (1 + delta), bias (1 + xi)."""
    changed = {}
    for name, edit in edits.items():
        layer = suspect.module.get_submodule(name)
        assert edit.weight_noise is not None
        assert edit.bias_noise is not None
        assert isinstance(layer.weight, Tensor)
        assert isinstance(layer.bias, Tensor)
        rows = edit.weight_noise.view([-1] + [1] * (layer.weight.dim() - 1))
        changed[f"{name}.weight"] = layer.weight * (1 + rows)
        changed[f"{name}.bias"] = layer.bias * (1 + edit.bias_noise)
    return changed


@every_kind
def test_noise_equals_scaled_weights_and_biases(name: str) -> None:
    suspect = suspect_of(BUILDS[name](), size=16)
    edits, batch = noise(suspect), images(6, size=16)
    with suspect.borrowed(), torch.no_grad():
        expected = torch.func.functional_call(
            suspect.module, scaled_parameters(suspect, edits), (normalised(batch),)
        )
        with suspect.edited(edits):
            found = suspect.logits(batch)
        assert distance(found, expected) <= 1e-6
        assert bool((found - suspect.logits(batch)).abs().max() > 1e-3)


@every_kind
@pytest.mark.parametrize("mode", list(BatchNormMode))
def test_noise_of_zero_changes_no_logit(name: str, mode: BatchNormMode) -> None:
    suspect = suspect_of(BUILDS[name]())
    batch = images(6)

    def logits(edits: dict[str, SiteEdit]) -> Tensor:
        with suspect.borrowed(), torch.no_grad(), suspect.edited(edits, mode=mode) as state:
            with state.collecting():
                suspect.logits(batch)
            return suspect.logits(batch)

    assert distance(logits(noise(suspect, epsilon=0.0)), logits({})) <= 1e-6


@every_kind
@pytest.mark.parametrize("mode", list(BatchNormMode))
def test_gradients_reach_the_noise_and_no_weight(name: str, mode: BatchNormMode) -> None:
    suspect = suspect_of(BUILDS[name]())
    edits = noise(suspect)
    searched = [n for e in edits.values() for n in (e.weight_noise, e.bias_noise) if n is not None]
    with suspect.borrowed():
        for tensor in searched:
            tensor.requires_grad_()
        with suspect.edited(edits, mode=mode) as state:
            with state.collecting(), torch.no_grad():
                suspect.logits(images(8))
            suspect.logits(images(8)).logsumexp(1).sum().backward()
        assert all(parameter.grad is None for parameter in suspect.module.parameters())
    for tensor in searched:
        assert tensor.grad is not None
        assert bool(tensor.grad.abs().max() > 0)


@every_kind
@pytest.mark.parametrize("mode", [BatchNormMode.RUNNING, *ESTIMATED])
def test_an_edit_leaves_no_trace(name: str, mode: BatchNormMode) -> None:
    suspect = suspect_of(BUILDS[name]())
    digest = state_digest(suspect.module)
    with torch.no_grad(), suspect.edited(noise(suspect), mode=mode) as state:
        with state.collecting():
            suspect.logits(images(4))
        suspect.logits(images(4))
        assert state_digest(suspect.module) != digest
    assert state_digest(suspect.module) == digest


@pytest.mark.parametrize("name", ["resnet", "bn", "densenet"])
def test_batch_mode_equals_running_mode_on_exact_statistics(name: str) -> None:
    suspect = suspect_of(BUILDS[name](), size=16)
    batch = images(24, size=16)
    layers = [suspect.module.get_submodule(site.name) for site in suspect.sites]
    seen: dict[nn.Module, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda m, args: seen.update({m: args[0]}))
        for layer in layers
    ]
    with torch.no_grad(), suspect.edited({}, mode=BatchNormMode.BATCH):
        batch_mode = suspect.logits(batch)
    for handle in handles:
        handle.remove()
    for layer in layers:
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(seen[layer].mean((0, 2, 3)))
        layer.running_var.copy_(seen[layer].var((0, 2, 3), correction=0))
    with torch.no_grad():
        running_mode = suspect.logits(batch)
    assert distance(batch_mode, running_mode) <= 1e-4


@pytest.mark.parametrize("name", ["resnet", "bn", "densenet"])
@pytest.mark.parametrize("is_noisy", [False, True])
def test_recalibration_is_torchs_cumulative_average(name: str, is_noisy: bool) -> None:
    suspect = suspect_of(BUILDS[name](), size=16)
    edits = noise(suspect) if is_noisy else {}
    batches = [images(n, size=16, seed=n) for n in (9, 7, 8)]
    twin = copy.deepcopy(suspect.module)
    twin.load_state_dict(twin.state_dict() | scaled_parameters(suspect, edits))
    for layer in twin.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train().reset_running_stats()
            layer.momentum = None
    with suspect.borrowed(), torch.no_grad():
        for batch in batches:
            twin(normalised(batch))
        with suspect.edited(edits, mode=BatchNormMode.RECAL) as state:
            with state.collecting():
                for batch in batches:
                    suspect.logits(batch)
            found = suspect.logits(batches[0])
        expected = twin.eval()(normalised(batches[0]))
    assert distance(found, expected) < 1e-4


def test_collecting_starts_anew() -> None:
    suspect = suspect_of(models.tiny_bn())
    first, second = images(6, seed=1), images(6, seed=2)

    def recalibrated(*rounds: Tensor) -> Tensor:
        with torch.no_grad(), suspect.edited({}, mode=BatchNormMode.RECAL) as state:
            for batch in rounds:
                with state.collecting():
                    suspect.logits(batch)
            return suspect.logits(first)

    torch.testing.assert_close(recalibrated(first, second), recalibrated(second), rtol=0, atol=0)
    assert not torch.equal(recalibrated(first), recalibrated(second))


def test_recalibrated_logits_before_collecting_are_an_error() -> None:
    suspect = suspect_of(models.tiny_bn())
    with suspect.edited({}, mode=BatchNormMode.RECAL), pytest.raises(KeyError):
        suspect.logits(images(2))


@pytest.mark.parametrize("name", ["resnet", "groupnorm", "plain", "tokens"])
@pytest.mark.parametrize("mode", [BatchNormMode.RUNNING, *ESTIMATED])
def test_restarts_together_equal_separate_runs(name: str, mode: BatchNormMode) -> None:
    suspect = suspect_of(BUILDS[name](), size=16)
    batch = images(5, size=16)
    restarts = [noise(suspect, seed=seed) for seed in (10, 40, 70)]
    stacked = {
        site.name: SiteEdit(
            weight_noise=torch.stack([r[site.name].weight_noise for r in restarts]),
            bias_noise=torch.stack([r[site.name].bias_noise for r in restarts]),
        )
        for site in suspect.sites
    }

    def run(edits: dict[str, SiteEdit], inputs: Tensor, groups: int) -> Tensor:
        with torch.no_grad(), suspect.edited(edits, mode=mode, groups=groups) as state:
            with state.collecting():
                suspect.logits(inputs)
            return suspect.logits(inputs)

    together = run(stacked, torch.cat([batch] * 3), 3)
    apart = torch.cat([run(edits, batch, 1) for edits in restarts])
    assert distance(together, apart) < 1e-5


def test_an_edit_without_restarts_holds_for_all_of_them() -> None:
    suspect = suspect_of(models.tiny_bn())
    edits = noise(suspect)
    batch = images(4)
    with torch.no_grad():
        with suspect.edited(edits, groups=2):
            together = suspect.logits(torch.cat([batch, batch]))
        with suspect.edited(edits):
            alone = suspect.logits(batch)
    torch.testing.assert_close(together, torch.cat([alone, alone]))


@pytest.mark.parametrize("name", ["resnet", "densenet", "groupnorm"])
def test_a_removed_norm_channel_is_one_of_zero_weight_and_bias(name: str) -> None:
    suspect = suspect_of(BUILDS[name](), size=16)
    batch = images(6, size=16)
    edits, zeroed = {}, {}
    for index, site in enumerate(suspect.sites):
        keep = (draw((site.channels,), index) > -0.5).float()
        edits[site.name] = SiteEdit(keep=keep)
        layer = suspect.module.get_submodule(site.name)
        assert isinstance(layer.weight, Tensor)
        assert isinstance(layer.bias, Tensor)
        zeroed[f"{site.name}.weight"] = layer.weight * keep
        zeroed[f"{site.name}.bias"] = layer.bias * keep
    with suspect.borrowed(), torch.no_grad():
        expected = torch.func.functional_call(suspect.module, zeroed, (normalised(batch),))
        with suspect.edited(edits):
            found = suspect.logits(batch)
    assert distance(found, expected) < 1e-5


@pytest.mark.parametrize("name", ["resnet", "densenet"])
def test_a_push_shifts_the_input_of_a_batchnorm(name: str) -> None:
    suspect = suspect_of(BUILDS[name](), size=16)
    batch = images(6, size=16)
    edits, shifted = {}, {}
    for index, site in enumerate(suspect.sites):
        push = 0.3 * draw((site.channels,), index)
        edits[site.name] = SiteEdit(push=push)
        # Larger inputs under the same mean are the same inputs under a smaller mean.
        mean = suspect.module.get_buffer(f"{site.name}.running_mean")
        shifted[f"{site.name}.running_mean"] = mean - push
    with suspect.borrowed(), torch.no_grad():
        expected = torch.func.functional_call(suspect.module, shifted, (normalised(batch),))
        with suspect.edited(edits):
            found = suspect.logits(batch)
    assert distance(found, expected) < 1e-5


@pytest.mark.parametrize("name", ["plain", "groupnorm", "tokens"])
def test_a_push_shifts_the_output_of_any_other_layer(name: str) -> None:
    suspect = suspect_of(BUILDS[name]())
    batch = images(6)
    edits, shifted = {}, {}
    for index, site in enumerate(suspect.sites):
        push = 0.3 * draw((site.channels,), index)
        edits[site.name] = SiteEdit(push=push)
        bias = suspect.module.get_parameter(f"{site.name}.bias")
        shifted[f"{site.name}.bias"] = bias + push
    with suspect.borrowed(), torch.no_grad():
        expected = torch.func.functional_call(suspect.module, shifted, (normalised(batch),))
        with suspect.edited(edits):
            found = suspect.logits(batch)
    assert distance(found, expected) < 1e-5


def test_a_removed_convolution_channel_gives_nothing() -> None:
    suspect = suspect_of(models.tiny_plain())
    keep = torch.tensor([0.0, 1, 1, 1, 1, 1, 1, 1])
    seen: list[Tensor] = []
    suspect.module.get_submodule("conv1").register_forward_hook(
        lambda _m, _a, out: seen.append(out)
    )
    with torch.no_grad(), suspect.edited({"conv1": SiteEdit(keep=keep)}):
        suspect.logits(images(2))
    assert bool((seen[0][:, 0] == 0).all())
    assert bool((seen[0][:, 1:] != 0).any())


def test_the_two_noises_and_the_push_may_come_alone() -> None:
    suspect = suspect_of(models.tiny_plain())
    batch = images(3)
    amount = torch.full((8,), 0.5)
    with torch.no_grad():
        plain = suspect.logits(batch)
        for edit in (
            SiteEdit(weight_noise=amount),
            SiteEdit(bias_noise=amount),
            SiteEdit(push=amount),
        ):
            with suspect.edited({"conv1": edit}):
                assert bool((suspect.logits(batch) - plain).abs().max() > 1e-4)


def biasless() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4))
    return initialised(net, 0)


def test_noise_on_a_layer_without_bias_scales_its_output() -> None:
    suspect = suspect_of(biasless())
    edits = {"0": scaled(suspect, "0", 0.5)}
    batch = images(3)
    weight = suspect.module.get_parameter("0.weight")
    with suspect.borrowed(), torch.no_grad():
        expected = torch.func.functional_call(
            suspect.module, {"0.weight": weight * 1.5}, (normalised(batch),)
        )
        with suspect.edited(edits):
            torch.testing.assert_close(suspect.logits(batch), expected)


def test_noise_on_a_batchnorm_without_affine_scales_its_output() -> None:
    def norm(width: int) -> nn.Module:
        return nn.BatchNorm2d(width, affine=False)

    suspect = suspect_of(initialised(models.ConvNet(norm), 0))
    seen: list[Tensor] = []
    suspect.module.get_submodule("norm1").register_forward_hook(
        lambda _m, _a, out: seen.append(out)
    )
    with torch.no_grad():
        suspect.logits(images(3))
        with suspect.edited({"norm1": scaled(suspect, "norm1", 0.25)}):
            suspect.logits(images(3))
    torch.testing.assert_close(seen[1], seen[0] * 1.25)


def test_a_batchnorm_without_statistics_uses_each_batchs_own_in_every_mode() -> None:
    suspect = suspect_of(models.tiny_batch_statistics())
    batch = images(6)
    with torch.no_grad():
        expected = suspect.logits(batch)
        for mode in BatchNormMode:
            with suspect.edited({}, mode=mode):
                torch.testing.assert_close(suspect.logits(batch), expected)


def test_batch_statistics_mix_the_images_of_one_batch_alone() -> None:
    suspect = suspect_of(models.tiny_bn())
    one, other = images(4, seed=1), images(4, seed=2)
    with torch.no_grad(), suspect.edited({}, mode=BatchNormMode.BATCH, groups=2):
        first = suspect.logits(torch.cat([one, other]))[:4]
        second = suspect.logits(torch.cat([one, one]))[:4]
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


def test_contexts_may_be_nested() -> None:
    suspect = suspect_of(models.tiny_plain())
    digest = state_digest(suspect.module)
    batch = images(3)
    outer, inner = ({n: scaled(suspect, n, 0.5)} for n in ("conv1", "conv2"))
    with torch.no_grad():
        with suspect.edited(outer | inner):
            both = suspect.logits(batch)
        with suspect.edited(outer):
            alone = suspect.logits(batch)
            with suspect.edited(inner):
                torch.testing.assert_close(suspect.logits(batch), both)
            with suspect.edited(outer):
                suspect.logits(batch)
            torch.testing.assert_close(suspect.logits(batch), alone, rtol=0, atol=0)
    assert state_digest(suspect.module) == digest


def test_a_forward_that_the_owner_replaced_survives_an_edit() -> None:
    module = models.tiny_plain()
    original = module.conv1.forward
    module.conv1.forward = lambda x: -original(x)
    replaced = module.conv1.forward
    suspect = suspect_of(module)
    with torch.no_grad():
        before = suspect.logits(images(2))
        with suspect.edited({"conv1": scaled(suspect, "conv1", 0.5)}):
            assert not torch.equal(suspect.logits(images(2)), before)
        assert torch.equal(suspect.logits(images(2)), before)
    assert module.conv1.forward is replaced


def test_an_error_inside_the_context_ends_the_edit() -> None:
    suspect = suspect_of(models.tiny_bn())
    digest = state_digest(suspect.module)

    def fail() -> None:
        recal = BatchNormMode.RECAL
        with suspect.edited(noise(suspect), mode=recal) as state, state.collecting():
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert state_digest(suspect.module) == digest


class Attending(nn.Module):
    """A transformer layer of torch's own between a patch embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.layer(tokens).mean(1))


def test_layers_that_torch_fuses_are_edited_too() -> None:
    suspect = suspect_of(initialised(Attending(), 3))
    pictures = images(5)
    names = {site.name for site in suspect.sites}
    assert {"layer.norm1", "layer.norm2"} <= names
    with suspect.borrowed(), torch.no_grad():
        before = suspect.logits(pictures)
        for name in ("layer.norm1", "layer.norm2"):
            with suspect.edited({name: SiteEdit(keep=torch.zeros(8))}):
                changed = suspect.logits(pictures)
            assert distance(changed, before) > 0.01
        assert torch.equal(suspect.logits(pictures), before)
    assert not any(layer._forward_pre_hooks for layer in suspect.module.modules())
