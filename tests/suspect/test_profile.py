from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from modelaudit.suspect import Profile, SiteKind, Suspect, profile, state_digest
from tests.helpers import models
from tests.helpers.models import distance, images, initialised, suspect_of

if TYPE_CHECKING:
    from collections.abc import Callable

BUILDS: list[Callable[[], nn.Module]] = [
    models.tiny_resnet,
    models.tiny_densenet,
    models.tiny_plain,
    models.tiny_groupnorm,
    models.tiny_tokens,
    models.tiny_untraceable,
    models.tiny_without_split,
    models.tiny_tuple,
]
every_kind = pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)


def profiled(suspect: Suspect, batch: Tensor, *, batch_size: int = 128) -> Profile:
    with suspect.borrowed():
        return profile(suspect, batch, batch_size=batch_size)


@every_kind
def test_the_profile_equals_literal_loops(build: Callable[[], nn.Module]) -> None:
    suspect = suspect_of(build())
    batch = images(5)
    seen: dict[str, Tensor] = {}
    for site in suspect.sites:
        takes_input = site.kind is SiteKind.BATCHNORM
        suspect.module.get_submodule(site.name).register_forward_hook(
            lambda _m, args, out, name=site.name, first=takes_input: seen.update(
                {name: args[0] if first else out}
            )
        )
    for record in profiled(suspect, batch).sites:
        for i, values in enumerate(seen[record.site.name].split(1)):
            for channel in range(record.site.channels):
                numbers = values.select(record.site.channel_dim, channel).flatten().tolist()
                assert record.positions == len(numbers)
                assert record.sums[i, channel].item() == pytest.approx(sum(numbers), abs=1e-9)
                assert record.squares[i, channel].item() == pytest.approx(
                    sum(x * x for x in numbers), rel=1e-12, abs=1e-9
                )
                assert record.peaks[i, channel].item() == max(numbers)


@every_kind
def test_the_batch_size_changes_nothing(build: Callable[[], nn.Module]) -> None:
    suspect = suspect_of(build())
    batch = images(23)
    one, other = (profiled(suspect, batch, batch_size=size) for size in (7, 23))
    assert distance(one.logits, other.logits) < 1e-5
    assert (one.features is None) == (other.features is None)
    if one.features is not None and other.features is not None:
        assert distance(one.features, other.features) < 1e-5
    for first, second in zip(one.sites, other.sites, strict=True):
        for name in ("sums", "squares", "peaks"):
            assert distance(getattr(first, name), getattr(second, name)) < 1e-5


def test_sums_of_exact_numbers_are_exact_whatever_the_batch_size() -> None:
    # Pixels of k/256 through a convolution of powers of two are exact in float32; their squares
    # are exact in float64 alone.
    net = nn.Sequential(
        nn.Conv2d(3, 2, 1, bias=False),
        nn.BatchNorm2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 4),
    )
    module = initialised(net, 0)
    with torch.no_grad():
        weight = torch.tensor([[1.0, 2, 4], [-1, 0.5, 8]]).view(2, 3, 1, 1)
        module.get_parameter("0.weight").copy_(weight)
    suspect = suspect_of(module, preprocessing=models.PLAIN_PIXELS)
    batch = (images(40) * 256).floor() / 256
    expected = torch.einsum("nchw,dc->ndhw", batch.double(), weight.double().flatten(1))
    for size in (7, 40):
        record = profiled(suspect, batch, batch_size=size).sites[0]
        torch.testing.assert_close(record.sums, expected.sum((2, 3)), rtol=0, atol=1e-9)
        torch.testing.assert_close(record.squares, expected.square().sum((2, 3)), rtol=0, atol=1e-9)


def test_the_logits_are_the_models_and_decide_the_predictions() -> None:
    suspect = suspect_of(models.tiny_resnet())
    batch = images(9)
    found = profiled(suspect, batch, batch_size=4)
    with torch.no_grad():
        assert distance(found.logits, suspect.logits(batch)) < 1e-5
    assert torch.equal(found.predictions, found.logits.argmax(1))
    assert torch.equal(found.predictions, suspect.predict(batch))


def test_the_features_give_the_logits_through_the_head() -> None:
    suspect = suspect_of(models.tiny_bn())
    found = profiled(suspect, images(6), batch_size=4)
    assert found.features is not None
    assert found.features.shape == (6, 16, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(suspect.head(found.features), found.logits)


@pytest.mark.parametrize("build", [models.tiny_untraceable, models.tiny_without_split])
def test_features_that_would_cost_a_pass_of_their_own_are_left_out(
    build: Callable[[], nn.Module],
) -> None:
    suspect = suspect_of(build())
    assert profiled(suspect, images(3)).features is None
    assert suspect.passes.forward == 3


@every_kind
def test_one_forward_pass_for_each_image_is_counted(build: Callable[[], nn.Module]) -> None:
    suspect = suspect_of(build())
    profiled(suspect, images(11), batch_size=4)
    assert (suspect.passes.forward, suspect.passes.forward_backward) == (11, 0)


@every_kind
def test_the_dtypes_are_those_that_divergences_need(build: Callable[[], nn.Module]) -> None:
    found = profiled(suspect_of(build()), images(3))
    assert found.logits.dtype is torch.float32
    for record in found.sites:
        assert record.sums.dtype is torch.float64
        assert record.squares.dtype is torch.float64
        assert record.peaks.dtype is torch.float32
        assert record.sums.shape == (3, record.site.channels)


def test_the_records_stand_in_the_order_of_the_sites() -> None:
    suspect = suspect_of(models.tiny_densenet())
    found = profiled(suspect, images(2))
    assert tuple(record.site for record in found.sites) == suspect.sites


def test_a_layer_called_twice_in_a_pass_sees_both_calls_of_each_image() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.norm = nn.BatchNorm2d(3)
            self.pool = nn.MaxPool2d(2)
            self.head = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(torch.relu(self.norm(self.conv(x))))
            out: Tensor = self.head(torch.relu(self.norm(x)).mean((2, 3)))
            return out

    module = initialised(Twice(), 0)
    suspect = suspect_of(module)
    seen: list[Tensor] = []
    handle = module.get_submodule("norm").register_forward_pre_hook(
        lambda _m, args: seen.append(args[0])
    )
    batch = images(5)
    with torch.no_grad():
        suspect.logits(batch)
    handle.remove()
    (record,) = profiled(suspect, batch, batch_size=2).sites
    assert record.positions == 64 + 16
    both = torch.cat([values.flatten(2) for values in seen], dim=2).double()
    torch.testing.assert_close(record.sums, both.sum(2), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(record.squares, both.square().sum(2), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(record.peaks, both.amax(2).float(), rtol=1e-5, atol=1e-5)


def test_a_layer_that_folds_positions_into_the_batch_keeps_every_row() -> None:
    class Folding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Linear(3, 5)
            self.head = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.token(x.flatten(2).transpose(1, 2).reshape(-1, 3))
            out: Tensor = self.head(torch.relu(rows).view(len(x), -1, 5).mean(1))
            return out

    module = initialised(Folding(), 0)
    suspect = suspect_of(module, preprocessing=models.PLAIN_PIXELS)
    batch = images(7)
    with torch.no_grad():
        rows = module.get_submodule("token")(batch.flatten(2).transpose(1, 2).reshape(-1, 3))
    record = profiled(suspect, batch, batch_size=3).sites[0]
    assert record.sums.shape == (7 * 64, 5)
    torch.testing.assert_close(record.sums, rows.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(record.peaks, rows, rtol=1e-5, atol=1e-5)


class _Memory(TorchFunctionMode):
    """Measure the most bytes that tensors returned by operations hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.seen: list[weakref.ref[Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.seen = [ref for ref in self.seen if ref() is not None] + [weakref.ref(result)]
            alive = [tensor for ref in self.seen if (tensor := ref()) is not None]
            storages = [tensor.untyped_storage() for tensor in alive]
            self.peak = max(self.peak, sum({s.data_ptr(): s.nbytes() for s in storages}.values()))
        return result


def test_the_statistics_are_in_memory_only_once() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 1000, 1)
            self.norm = nn.BatchNorm2d(1000)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(self.conv(x)).view(len(x), 4, 250).mean(2)
            return out

    suspect = suspect_of(initialised(Wide(), 0), size=1)
    batch = images(200, size=1)
    with suspect.borrowed(), _Memory() as memory:
        found = profile(suspect, batch, batch_size=10)
    kept = sum(t.nbytes for r in found.sites for t in (r.sums, r.squares, r.peaks))
    assert kept == 200 * 1000 * (8 + 8 + 4)
    # A batch of ten images takes little beside it.
    assert kept < memory.peak < 1.3 * kept


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_no_hook_stays_when_the_pass_ends_early(error: BaseException) -> None:
    module = models.tiny_raising()
    suspect = suspect_of(module)
    digest = state_digest(module)
    module.fuse.arm(1, error)
    with pytest.raises(type(error)):
        profile(suspect, images(6), batch_size=2)
    assert state_digest(module) == digest


def test_no_hook_stays_after_success() -> None:
    suspect = suspect_of(models.tiny_bn())
    digest = state_digest(suspect.module)
    profile(suspect, images(2))
    assert state_digest(suspect.module) == digest


def test_no_images_give_an_empty_profile() -> None:
    found = profiled(suspect_of(models.tiny_bn()), images(0))
    assert found.logits.shape == (0, models.CLASSES)
    assert found.sites[0].sums.shape == (0, 8)
    assert found.seconds_per_image >= 0


def test_the_time_of_an_image_is_positive() -> None:
    assert profiled(suspect_of(models.tiny_bn()), images(4)).seconds_per_image > 0
