"""Fine-pruning: the classifier's inputs found by trial, dormant channels, what stays blind."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from modelaudit.errors import ConfigError, RepairError
from modelaudit.repairs._columns import feature_columns
from modelaudit.repairs.fine_pruning import (
    FinePruningConfig,
    FinePruningPaperCodeConfig,
    FinePruningPaperCodeRepair,
    FinePruningRepair,
    dormant_order,
    mean_features,
    prune_dormant,
)
from modelaudit.suspect import Suspect, state_digest
from tests.helpers.models import (
    CLASSES,
    images,
    suspect_of,
    tiny_bn,
    tiny_densenet,
    tiny_resnet,
    tiny_tokens,
    tiny_untraceable,
    tiny_without_split,
)
from tests.helpers.training import (
    context_of,
    copy_of,
    is_well_formed,
    same_state,
    tiny_data,
    tiny_suspect,
)

QUICK = FinePruningConfig(epochs=2, batch=32, step_fraction=0.05)


class _Deep(nn.Module):
    """Two linear layers behind the maps, as torchvision's VGG."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.pool = nn.MaxPool2d(4)
        self.hidden = nn.Linear(20, 7)
        self.head = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.hidden(self.pool(torch.relu(self.conv(x))).flatten(1)))
        out: Tensor = self.head(hidden)
        return out


class _Mixing(nn.Module):
    """Normalises over channels between the maps and the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x).mean((2, 3)).softmax(1))
        return out


@pytest.mark.parametrize(
    ("module", "layer", "width", "channels"),
    [
        (tiny_bn(), "head", 4, 16),  # pooled to 2x2, flattened channel by channel
        (tiny_resnet(), "linear", 1, 32),
        (tiny_densenet(), "head", 1, 16),
        (tiny_untraceable(), "head", 4, 16),
        (_Deep().eval(), "hidden", 4, 5),
    ],
)
def test_every_channel_has_inputs_of_its_own(
    module: nn.Module, layer: str, width: int, channels: int
) -> None:
    found = feature_columns(suspect_of(module))
    assert (
        module.get_submodule(found.layer)
        is [child for child in module.modules() if isinstance(child, nn.Linear)][
            0 if layer == "hidden" else -1
        ]
    )
    assert found.columns == tuple(tuple(range(width * k, width * (k + 1))) for k in range(channels))


def test_a_1x1_convolution_as_classifier() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, CLASSES, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()
    suspect = suspect_of(module)
    found = feature_columns(suspect)
    assert found.columns == tuple((k,) for k in range(6))
    found.zero(module, (1, 4))
    weight = module.get_submodule(found.layer).weight
    assert isinstance(weight, Tensor)
    assert weight.abs().sum((0, 2, 3)).eq(0).tolist() == [False, True, False, False, True, False]


@pytest.mark.parametrize("module", [tiny_without_split(), tiny_tokens(), _Mixing().eval()])
def test_models_without_such_inputs_are_refused(module: nn.Module) -> None:
    with pytest.raises(RepairError, match="take another repair"):
        feature_columns(suspect_of(module))


def test_channels_are_ranked_by_their_mean_activation() -> None:
    model, data = copy_of(tiny_suspect()), tiny_data()
    means, features = mean_features(model, data.images, batch_size=50)
    with torch.no_grad():
        expected = model.features(data.images).double().mean((0, 2, 3))
    torch.testing.assert_close(means, expected)
    assert len(features) == 120
    order = dormant_order(means)
    assert sorted(order) == list(range(16))
    assert all(means[a] <= means[b] for a, b in itertools.pairwise(order))
    assert dormant_order(torch.tensor([1.0, 0.0, 1.0, 0.0])) == [1, 3, 0, 2]


def pruned_within(drop: float, *, step: float = 0.05) -> tuple[Suspect, tuple[int, ...]]:
    """Return a pruned copy and its pruned channels."""
    model = copy_of(tiny_suspect())
    pruned = prune_dormant(
        model,
        tiny_data(),
        context_of(batch_size=7),
        feature_columns(model),
        step_fraction=step,
        max_drop=drop,
        max_fraction=0.95,
    )
    return model, pruned


def test_sets_are_nested_and_follow_the_order() -> None:
    data = tiny_data()
    model = copy_of(tiny_suspect())
    order = dormant_order(mean_features(model, data.images[data.work], batch_size=50)[0])
    sets = [pruned_within(drop)[1] for drop in (0.0, 0.1, 0.3, 1.0)]
    assert [list(s) for s in sets] == [order[: len(s)] for s in sets]
    assert [len(s) for s in sets] == sorted(len(s) for s in sets)
    assert len(sets[0]) < len(sets[-1]) == 15  # 95 % of 16


def test_the_step_over_the_limit_is_taken_back() -> None:
    data, suspect = tiny_data(), tiny_suspect()
    model, pruned = pruned_within(0.2)
    truth = data.labels[data.validation]
    after = float((model.predict(data.images[data.validation]) == truth).double().mean())
    before = float((suspect.predict(data.images[data.validation]) == truth).double().mean())
    assert after >= before - 0.2 - 1e-9
    order = dormant_order(mean_features(suspect, data.images[data.work], batch_size=50)[0])
    feature_columns(model).zero(model.module, order[: len(pruned) + 1])
    worse = float((model.predict(data.images[data.validation]) == truth).double().mean())
    assert worse < before - 0.2


def test_the_classifier_is_blind_to_pruned_features() -> None:
    model, pruned = pruned_within(0.3)
    assert pruned
    with torch.no_grad():
        features = model.features(images(9))
        spoiled = features.clone()
        spoiled[:, list(pruned)] = 100 * torch.rand(9, len(pruned), *features.shape[2:])
        assert torch.equal(model.head(features), model.head(spoiled))
        spoiled[:, next(k for k in range(16) if k not in pruned)] += 1
        assert not torch.equal(model.head(features), model.head(spoiled))


@pytest.mark.parametrize("kind", [FinePruningRepair, FinePruningPaperCodeRepair])
def test_pruned_inputs_stay_zero_through_fine_tuning(
    kind: type[FinePruningRepair] | type[FinePruningPaperCodeRepair],
) -> None:
    suspect = tiny_suspect()
    before = state_digest(suspect.module)
    config = replace(QUICK, max_drop=0.6)
    if kind is FinePruningPaperCodeRepair:
        result = kind(FinePruningPaperCodeConfig(epochs=2)).repair(
            suspect, tiny_data(), context=context_of()
        )
    else:
        result = kind(config).repair(suspect, tiny_data(), context=context_of())  # type: ignore[arg-type]  # its own
    assert state_digest(suspect.module) == before
    assert is_well_formed(result, suspect)
    channels = result.details["pruned_channels"]
    assert isinstance(channels, list)
    assert channels
    if kind is FinePruningPaperCodeRepair:
        assert len(channels) == 13  # 0.8 of 16
    weight = result.module.state_dict()["head.weight"].view(CLASSES, 16, 4)
    is_zero = weight.abs().sum((0, 2)) == 0
    gone = tuple(is_zero.nonzero().flatten().tolist())
    assert gone == tuple(sorted(map(int, map(str, channels))))
    assert suspect.split is not None
    assert result.pruned == ((suspect.split.point, gone),)
    assert result.pruned_neurons == len(channels)
    assert not torch.equal(
        result.module.state_dict()["conv1.weight"], suspect.module.state_dict()["conv1.weight"]
    )


def test_without_epochs_only_the_classifier_changes() -> None:
    suspect = tiny_suspect()
    config = replace(QUICK, epochs=0, max_drop=0.6)
    result = FinePruningRepair(config).repair(suspect, tiny_data(), context=context_of())
    old, new = suspect.module.state_dict(), result.module.state_dict()
    assert {name for name in old if not torch.equal(old[name], new[name])} == {"head.weight"}
    assert result.history == ()
    assert result.pruned_neurons > 0


def test_what_is_reported_as_pruned_is_gone_however_far_it_walks_back() -> None:
    suspect = tiny_suspect()
    # Nothing may be lost: the training alone has to be taken back, most of it or all.
    result = FinePruningRepair(replace(QUICK, max_drop=0.6, learning_rate=0.2)).repair(
        suspect, tiny_data(), context=replace(context_of(), max_accuracy_drop=0.0)
    )
    kept = result.details["kept_share"]
    assert isinstance(kept, float)
    assert kept < 1
    weight = result.module.state_dict()["head.weight"].view(CLASSES, 16, 4)
    ((_, channels),) = result.pruned
    assert channels
    assert float(weight[:, list(channels)].abs().max()) == 0
    others = [k for k in range(16) if k not in channels]
    assert float(weight[:, others].abs().amax((0, 2)).min()) > 0


def test_where_no_channel_may_go_none_is_reported() -> None:
    suspect = tiny_suspect()
    result = FinePruningRepair(replace(QUICK, max_fraction=0.0)).repair(
        suspect, tiny_data(), context=context_of()
    )
    assert result.pruned == ()
    assert result.details["pruned_channels"] == []


def test_the_estimate_bounds_the_cost() -> None:
    for module in (tiny_bn(), tiny_untraceable()):
        suspect = suspect_of(module)
        data = tiny_data(suspect)
        repair = FinePruningRepair(QUICK)
        most = repair.estimate(suspect, data)
        cost = repair.repair(suspect, data, context=context_of()).cost
        assert cost.forward_backward == most.forward_backward
        assert cost.forward <= most.forward + 2 * len(data.validation)


def test_same_seed_same_weights_without_labels() -> None:
    data = replace(tiny_data(), has_labels=False)
    one, other = (
        FinePruningRepair(QUICK).repair(tiny_suspect(), data, context=context_of(seed=3))
        for _ in range(2)
    )
    assert same_state(one.module, other.module)


@pytest.mark.parametrize("field", ["max_drop", "max_fraction", "step_fraction", "epochs", "batch"])
def test_values_out_of_range_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        FinePruningConfig(**{field: -1})  # type: ignore[arg-type]  # on purpose
