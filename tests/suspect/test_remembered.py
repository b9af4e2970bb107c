from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from modelaudit.suspect import RememberedImages, SiteEdit, Suspect
from tests.helpers import models
from tests.helpers.models import BUILDS, draw, images, suspect_of

if TYPE_CHECKING:
    from collections.abc import Callable


def edits_from(suspect: Suspect, first: int, *, seed: int) -> dict[str, SiteEdit]:
    """Strong noise on every site from number `first` on."""
    edits = {}
    for index, site in enumerate(suspect.sites[first:]):
        noise = draw((site.channels,), seed + index)
        edits[site.name] = SiteEdit(weight_noise=noise, bias_noise=noise, keep=(noise > 0).float())
    return edits


def whole(suspect: Suspect, edits: dict[str, SiteEdit], batch: Tensor, size: int) -> Tensor:
    with suspect.edited(edits), torch.no_grad():
        return torch.cat([suspect.logits(part) for part in batch.split(size)])


@pytest.mark.parametrize("name", BUILDS)
def test_logits_are_those_of_whole_passes_bit_for_bit(name: str) -> None:
    suspect = suspect_of(BUILDS[name](), size=16)
    batch = images(11, size=16)
    remembered = RememberedImages(suspect, batch, batch_size=4)
    last = len(suspect.sites) - 1
    with suspect.borrowed():
        # Later, earlier, as early, later again, from the start, as before: recorded and replayed.
        for number, first in enumerate([last, last // 2, last // 2, last, 0, last // 2]):
            edits = edits_from(suspect, first, seed=number)
            expected = whole(suspect, edits, batch, 4)
            assert torch.equal(remembered.logits(edits), expected)
            assert torch.equal(remembered.predict(edits), expected.argmax(1))
        assert torch.equal(remembered.logits({}), whole(suspect, {}, batch, 4))
    assert suspect.passes.forward == (6 * 3 + 2) * 11


class Operations(TorchDispatchMode):
    """Counts the convolutions that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.convolutions += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


def convolutions_in(run: Callable[[], object]) -> int:
    with Operations() as seen:
        run()
    return seen.convolutions


def test_what_comes_before_the_first_edit_is_computed_once() -> None:
    suspect = suspect_of(models.tiny_resnet(), size=16)
    batch = images(6, size=16)
    remembered = RememberedImages(suspect, batch, batch_size=3)
    last = len(suspect.sites) - 1
    edits = edits_from(suspect, last, seed=1)
    with suspect.borrowed():
        first = convolutions_in(lambda: remembered.predict(edits))
        again = convolutions_in(lambda: remembered.predict(edits_from(suspect, last, seed=2)))
        earlier = convolutions_in(lambda: remembered.predict(edits_from(suspect, 0, seed=2)))
    convolutions = sum(isinstance(m, nn.Conv2d) for m in suspect.module.modules())
    after = convolutions_after(suspect, last)
    # Recording is checked by a first replay.
    assert first == 2 * (convolutions + after)
    assert again == 2 * after
    assert earlier == 2 * (convolutions + convolutions_after(suspect, 0))


def convolutions_after(suspect: Suspect, index: int) -> int:
    """Convolutions that run after site `index` has."""
    layers = [*suspect.module.named_modules()]
    ran: list[str] = []
    handles = [
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, layer in layers
        if isinstance(layer, nn.Conv2d) or name == suspect.sites[index].name
    ]
    suspect.predict(images(2, size=16))
    for handle in handles:
        handle.remove()
    return len(ran) - 1 - ran.index(suspect.sites[index].name)


def test_more_than_may_be_kept_is_passed_whole() -> None:
    suspect = suspect_of(models.tiny_resnet(), size=16)
    batch = images(9, size=16)
    edits = edits_from(suspect, len(suspect.sites) - 1, seed=1)
    with suspect.borrowed():
        with suspect.edited(edits):
            expected = suspect.predict(batch, batch_size=3)
        for limit, most in ((0, 0), (3000, 0), (4000, 1), (7000, 2), (10**6, 3)):
            remembered = RememberedImages(suspect, batch, batch_size=3, max_bytes=limit)
            for _ in range(2):
                assert torch.equal(remembered.predict(edits), expected)
            kept = [tape.size for tape in remembered._tapes if tape is not None]
            assert sum(kept) <= limit
            assert len(kept) == most


class InPlace(nn.Module):
    """Changes tensors in place on both sides of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x.mul_(1.5).sub_(0.1)
        y = self.norm(x)
        x += y
        z = self.second(x)
        z.add_(x)
        return self.last(z.mean((2, 3)))


class Deciding(InPlace):
    """Looks at what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.mean()) > 10:
            return self.last(x[:, :1].mean((2, 3)).expand(-1, 4))
        return super().forward(x)


class Views(InPlace):
    """Uses two views of what it computes, and changes one."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        one, other = x[:, :2], x.flatten(2)
        z = self.second(x)
        one.add_(z[:, :2])
        return self.last(z.mean((2, 3)) + other.mean(2))


class Listing(InPlace):
    """Takes what it computes out of torch and back."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        level = torch.tensor(x.mean((1, 2, 3)).tolist())
        return self.last(self.second(x).mean((2, 3)) * level[:, None])


class Writing(InPlace):
    """Writes what it computes where it outlives the pass, by a view and by an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))
        self.register_buffer("twice", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        means = x.mean((0, 2, 3))
        self.get_buffer("seen").view(2, 2).copy_(means.view(2, 2))
        torch.mul(means, 2, out=self.get_buffer("twice"))
        z = self.second(x).mean((2, 3))
        return self.last(z * self.get_buffer("seen") + self.get_buffer("twice"))


class Expanding(InPlace):
    """Uses a view that covers its memory more than once."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).mean((2, 3), keepdim=True).expand(-1, -1, 4, 4)
        return self.last(self.second(x).mean((2, 3)) + float(x.is_contiguous()))


@pytest.mark.parametrize(
    ("build", "is_kept"),
    [
        (InPlace, True),
        (Deciding, False),
        (Views, False),
        (Listing, False),
        (Writing, False),
        (Expanding, False),
    ],
)
def test_code_that_changes_or_reads_what_it_computes_is_served_rightly(
    build: Callable[[], nn.Module], *, is_kept: bool
) -> None:
    suspect = suspect_of(models.initialised(build(), 3))
    before = copy.deepcopy(suspect.module.state_dict())
    batch = images(7)
    remembered = RememberedImages(suspect, batch, batch_size=4)
    with suspect.borrowed():
        for seed in range(4):
            edits = {"second": SiteEdit(weight_noise=draw((4,), seed) * 3)}
            assert torch.equal(remembered.logits(edits), whole(suspect, edits, batch, 4))
    assert [tape is not None for tape in remembered._tapes] == [is_kept, is_kept]
    if build is not Writing:
        for name, value in suspect.module.state_dict().items():
            assert torch.equal(value, before[name])


class Turning(nn.Module):
    """Takes another way every second time."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.first(x)
        if self.calls % 2:
            x = x.relu()
        return self.last(self.norm(x).mean((2, 3)))


def test_a_module_that_takes_another_way_is_passed_whole() -> None:
    suspect = suspect_of(models.initialised(Turning(), 3))
    batch = images(5)
    remembered = RememberedImages(suspect, batch, batch_size=5)
    assert isinstance(suspect.module, Turning)
    with suspect.borrowed():
        edits = {"norm": SiteEdit(weight_noise=draw((4,), 1) * 3)}
        for calls in (0, 1, 0):
            suspect.module.calls = calls
            with suspect.edited(edits):
                expected = suspect.predict(batch, batch_size=5)
            suspect.module.calls = calls
            before = suspect.passes.forward
            got = remembered.predict(edits)
            assert suspect.passes.forward == before + 5
            if calls == 0:
                assert torch.equal(got, expected)


def test_layers_have_no_hooks_afterwards_even_after_an_error() -> None:
    suspect = suspect_of(models.tiny_resnet(), size=16)
    remembered = RememberedImages(suspect, images(4, size=16), batch_size=4)
    edits = edits_from(suspect, 1, seed=1)
    with suspect.borrowed():
        remembered.predict(edits)
        suspect.module.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            remembered.predict(edits)
    assert not any(layer._forward_pre_hooks for layer in suspect.module.modules())
