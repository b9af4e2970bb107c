from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from modelaudit.suspect import BatchNormMode, SiteEdit, borrowed, state_digest
from tests.helpers.models import (
    images,
    initialised,
    suspect_of,
    tiny_bn,
    tiny_densenet,
    tiny_raising,
    tiny_resnet,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def trained_state(module: nn.Module) -> nn.Module:
    """Give it what a module fresh from training has: mixed flags, gradients, a hook of its own."""
    module.train()
    module.norm1.eval()
    module.conv1.weight.requires_grad_(False)
    module.conv2.weight.grad = torch.full_like(module.conv2.weight, 0.5)
    module.head.register_forward_hook(lambda *_: None)
    return module


def change_weights(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)


def change_buffers(module: nn.Module) -> None:
    for buffer in module.buffers():
        buffer.add_(1)


def change_flags(module: nn.Module) -> None:
    module.train(not module.training)
    module.norm2.train(not module.norm2.training)
    module.conv1.weight.requires_grad_(True)


def add_hooks(module: nn.Module) -> None:
    module.conv1.register_forward_hook(lambda *_: None)
    module.conv1.register_forward_pre_hook(lambda *_: None)
    module.norm1.register_full_backward_hook(lambda *_: None)


def remove_hooks(module: nn.Module) -> None:
    module.head._forward_hooks.clear()


def accumulate_gradients(module: nn.Module) -> None:
    module.requires_grad_(True)
    for _ in range(2):
        module(images(3)).sum().backward()


def drop_gradients(module: nn.Module) -> None:
    module.zero_grad()


def replace_forward(module: nn.Module) -> None:
    module.norm1.forward = lambda x: x


def replace_parameter(module: nn.Module) -> None:
    module.conv1.weight = nn.Parameter(torch.zeros_like(module.conv1.weight))


def replace_layer(module: nn.Module) -> None:
    module.norm2 = nn.Identity()
    module.extra = nn.Linear(2, 2)


def change_attributes(module: nn.Module) -> None:
    module.norm1.momentum = None
    module.norm1.eps = 1.0
    del module.norm1.track_running_stats


def parametrise(module: nn.Module) -> None:
    parametrize.register_parametrization(module.conv1, "weight", Doubled())


def train_once(module: nn.Module) -> None:
    module.train()
    with torch.no_grad():
        module(images(4))


CHANGES: list[Callable[[nn.Module], None]] = [
    change_weights,
    change_buffers,
    change_flags,
    add_hooks,
    remove_hooks,
    accumulate_gradients,
    drop_gradients,
    replace_forward,
    replace_parameter,
    replace_layer,
    parametrise,
    train_once,
]
ENDINGS = [None, RuntimeError("in the middle"), KeyboardInterrupt()]
by_name = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


@pytest.mark.parametrize("ending", ENDINGS, ids=["success", "error", "interrupt"])
@by_name
def test_a_borrow_gives_back_bit_for_bit(
    change: Callable[[nn.Module], None], ending: BaseException | None
) -> None:
    module = trained_state(tiny_bn())
    before = state_digest(module)
    expected = module(images(2)) if change is not train_once else None
    digest = state_digest(module)

    def work() -> None:
        with borrowed(module):
            change(module)
            if ending is not None:
                raise ending

    if ending is None:
        work()
    else:
        with pytest.raises(type(ending)):
            work()
    assert state_digest(module) == digest
    if expected is None:
        assert digest == before
    else:
        torch.testing.assert_close(module(images(2)), expected, rtol=0, atol=0)


@by_name
def test_the_digest_notices(change: Callable[[nn.Module], None]) -> None:
    module = trained_state(tiny_bn())
    digest = state_digest(module)
    assert state_digest(module) == digest
    change(module)
    assert state_digest(module) != digest


def test_plain_attributes_are_given_back() -> None:
    module = tiny_bn()
    before = dict(vars(module.norm1))
    with borrowed(module):
        change_attributes(module)
    assert vars(module.norm1) == before


def test_a_parameter_is_the_same_object_after_a_borrow() -> None:
    module = tiny_bn()
    weight, hooks = module.conv1.weight, module.conv1._forward_hooks
    with borrowed(module):
        replace_parameter(module)
    assert module.conv1.weight is weight
    assert module.conv1._forward_hooks is hooks


def test_a_hook_of_the_owner_can_be_removed_after_a_borrow() -> None:
    module = tiny_bn()
    handle = module.conv1.register_forward_hook(lambda *_: None)
    with borrowed(module):
        add_hooks(module)
    handle.remove()
    assert not module.conv1._forward_hooks


def test_inside_a_borrow_the_module_is_frozen_and_in_eval() -> None:
    module = trained_state(tiny_bn())
    with borrowed(module) as lent:
        assert lent is module
        assert not any(child.training for child in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_tied_weights_stay_tied() -> None:
    module = tiny_bn()
    module.second = nn.Linear(32, 4)
    module.second.weight = module.head.weight
    digest = state_digest(module)
    with borrowed(module):
        change_weights(module)
    assert module.second.weight is module.head.weight
    assert state_digest(module) == digest


def test_a_buffer_that_is_not_saved_is_given_back() -> None:
    module = tiny_bn()
    module.register_buffer("scratch", torch.zeros(3), persistent=False)
    with borrowed(module):
        module.scratch.fill_(1)
    assert module.scratch.tolist() == [0, 0, 0]


def test_a_layer_that_is_borrowed_twice_is_given_back_twice() -> None:
    module = tiny_bn()
    digest = state_digest(module)
    with borrowed(module):
        change_weights(module)
        inner = state_digest(module)
        with borrowed(module):
            change_weights(module)
        assert state_digest(module) == inner
    assert state_digest(module) == digest


@pytest.mark.parametrize("build", [tiny_resnet, tiny_densenet])
def test_making_a_suspect_leaves_no_trace(build: Callable[[], nn.Module]) -> None:
    module = build().train()
    digest = state_digest(module)
    suspect_of(module)
    assert state_digest(module) == digest


def test_train_mode_drifts_as_torch_does_and_is_undone() -> None:
    module = tiny_resnet()
    suspect = suspect_of(module, size=16)
    digest = state_digest(module)
    batches = [images(5, size=16, seed=seed) for seed in (1, 2)]
    twin = copy.deepcopy(module).train()
    with torch.no_grad():
        for batch in batches:
            twin((batch - 0.5) / 0.5)
    with suspect.borrowed():
        with torch.no_grad(), suspect.edited({}, mode=BatchNormMode.TRAIN):
            for batch in batches:
                suspect.logits(batch)
        drifted = dict(module.named_buffers())
        for name, buffer in twin.named_buffers():
            if not name.endswith("num_batches_tracked"):
                torch.testing.assert_close(drifted[name], buffer)
        assert state_digest(module) != digest
    assert state_digest(module) == digest


def test_train_mode_without_momentum_uses_torchs_default() -> None:
    module = tiny_bn()
    module.norm1.momentum = None
    suspect = suspect_of(module)
    twin = copy.deepcopy(module)
    twin.norm1.momentum = 0.1
    with torch.no_grad():
        twin.train()((images(5) - 0.5) / 0.5)
    with suspect.borrowed(), torch.no_grad(), suspect.edited({}, mode=BatchNormMode.TRAIN):
        suspect.logits(images(5))
        torch.testing.assert_close(module.norm1.running_mean, twin.norm1.running_mean)


@pytest.mark.parametrize("mode", list(BatchNormMode))
@pytest.mark.parametrize("error", [ValueError("hostile"), KeyboardInterrupt()])
def test_an_end_in_mid_forward_leaves_no_trace(mode: BatchNormMode, error: BaseException) -> None:
    module = tiny_raising()
    trained_state(module)
    suspect = suspect_of(module)
    digest = state_digest(module)
    noise = torch.full((8,), 0.1, requires_grad=True)
    module.fuse.arm(2, error)

    def search() -> None:
        with suspect.borrowed():
            edits = {"norm1": SiteEdit(weight_noise=noise)}
            with suspect.edited(edits, mode=mode) as state:
                with state.collecting():
                    suspect.logits(images(4))
                suspect.logits(images(4)).sum().backward()
                suspect.logits(images(4))

    with pytest.raises(type(error)):
        search()
    assert noise.grad is not None
    assert state_digest(module) == digest


def test_half_precision_and_scalar_tensors_are_digested() -> None:
    module = initialised(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)), 0).half()
    digest = state_digest(module)
    module[1].bias.data[0] += 1
    assert state_digest(module) != digest
