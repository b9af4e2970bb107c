"""Running statistics afresh, and train mode for BatchNorm alone."""

from __future__ import annotations

import torch
from torch import nn

from modelaudit.repairs._batchnorm import reestimate_statistics, set_batchnorm_training
from tests.helpers.models import images, suspect_of, tiny_batch_statistics, tiny_bn, tiny_plain


def test_statistics_are_averages_over_batches() -> None:
    suspect = suspect_of(tiny_bn())
    norm, conv = suspect.module.get_submodule("norm1"), suspect.module.get_submodule("conv1")
    assert isinstance(norm, nn.BatchNorm2d)
    pictures = images(20)
    reestimate_statistics(suspect, pictures, batch=7)  # 3 batches of 7, 7 and 6
    means, variances = [], []
    with torch.no_grad():
        for part in pictures.tensor_split(3):
            x = conv((part - 0.5) / 0.5)
            means.append(x.mean((0, 2, 3)))
            variances.append(x.transpose(0, 1).flatten(1).var(1))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))
    assert suspect.passes.forward == 20


def test_nothing_but_the_statistics_changes() -> None:
    suspect = suspect_of(tiny_bn())
    before = {k: v.clone() for k, v in suspect.module.state_dict().items()}
    norm = suspect.module.get_submodule("norm1")
    assert isinstance(norm, nn.BatchNorm2d)
    reestimate_statistics(suspect, images(8), batch=4)
    after = suspect.module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"norm{i}.running_{kind}" for i in (1, 2) for kind in ("mean", "var")}
    assert norm.momentum == 0.1
    assert not any(child.training for child in suspect.module.modules())


def test_models_without_statistics_stay_as_they_are() -> None:
    for module in (tiny_plain(), tiny_batch_statistics()):
        suspect = suspect_of(module)
        reestimate_statistics(suspect, images(8), batch=4)
        assert suspect.passes.forward == 0


def test_only_batchnorm_is_put_in_train_mode() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5)).eval()
    set_batchnorm_training(module, is_training=True)
    assert [child.training for child in module] == [False, True, False]
    set_batchnorm_training(module, is_training=False)
    assert not any(child.training for child in module)
