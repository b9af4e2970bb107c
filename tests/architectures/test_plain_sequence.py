from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from modelaudit.architectures import Candidate
from modelaudit.architectures.plain_sequence import PlainSequence, PlainSequenceFamily
from modelaudit.errors import UnknownArchitectureError
from modelaudit.weights import ModuleHint, Weights
from tests.helpers.architectures import (
    agrees,
    hints_of,
    identify_all,
    images,
    seeded,
    sorted_by_name,
    weights_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def _conv(i: int, o: int, k: int = 3, **arguments: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=arguments.pop("padding", k // 2), **arguments)


def _cnn(in_channels: int = 3, side: int = 8) -> nn.Module:
    return nn.Sequential(
        _conv(in_channels, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        _conv(4, 6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * side * side, 12),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(12, 5),
    )


def _norm_cnn(norm: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(
        _conv(3, 8),
        norm(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        _conv(8, 16),
        norm(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 64, 5),
    )


class TutorialNet(nn.Module):
    """Named layers, one pooling used twice: the form of the well-known tutorial."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 20)
        self.fc2 = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.conv1(x)))
        x = self.pool(functional.relu(self.conv2(x)))
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))  # type: ignore[no-any-return]


class NamedNorms(nn.Module):
    """Convolutions, norms and linear layers by name and number, registered kind by kind."""

    def __init__(self) -> None:
        super().__init__()
        for i, (a, b) in enumerate(((3, 8), (8, 8), (8, 8)), start=1):
            self.add_module(f"conv{i}", _conv(a, b))
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
        self.fc1 = nn.Linear(8 * 16, 8)
        self.fc2 = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        for i in (1, 2, 3):
            out = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x))
            x = functional.max_pool2d(functional.relu(out), 2)
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))  # type: ignore[no-any-return]


class Blocks(nn.Module):
    """Features and classifier as two sequences, with the flattening in the forward pass."""

    def __init__(self, *, is_pooled: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv(3, 4),
            nn.BatchNorm2d(4),
            nn.LeakyReLU(0.2),
            nn.AvgPool2d(2),
            _conv(4, 6, stride=2),
            nn.BatchNorm2d(6, eps=1e-3),
            nn.LeakyReLU(0.2),
        )
        self.pool = nn.AdaptiveAvgPool2d(1 if is_pooled else 8)
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(6 if is_pooled else 6 * 64, 8), nn.Tanh(), nn.Linear(8, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.pool(self.features(x))
        return self.classifier(out.flatten(1))  # type: ignore[no-any-return]


class Stages(nn.Module):
    """One sequence per stage, as in many a course."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(_conv(1, 4, 5), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.layer2 = nn.Sequential(_conv(4, 6, 5), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
        self.fc = nn.Linear(7 * 7 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(x)).flatten(1))  # type: ignore[no-any-return]


def _right(
    module: nn.Module, weights: Weights, shape: tuple[int, ...] = (2, 3, 32, 32)
) -> list[Candidate]:
    """Return the first candidate that computes what the module does, in a list."""
    batch = images(shape)
    found = (c for c in identify_all(weights) if agrees(c, weights, module, batch))
    return list(islice(found, 1))


def _first_is_right(
    build: Callable[[], nn.Module], shape: tuple[int, ...] = (2, 3, 32, 32)
) -> None:
    module = seeded(build)
    weights = weights_of(module)
    first = identify_all(weights)[0]
    assert first.name == "plain_cnn"
    assert first.input_sizes[0] == shape[-1]
    assert first.input_channels == shape[1]
    assert first.num_classes == 5
    assert agrees(first, weights, module, images(shape))


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (_cnn, (2, 3, 32, 32)),
        (lambda: _cnn(in_channels=1, side=7), (2, 1, 28, 28)),
        (TutorialNet, (2, 3, 32, 32)),
        (NamedNorms, (2, 3, 32, 32)),
        (Stages, (2, 1, 28, 28)),
        (lambda: _norm_cnn(nn.BatchNorm2d), (2, 3, 32, 32)),
    ],
    ids=["sequence", "grey", "tutorial", "named_norms", "stages", "batchnorm"],
)
def test_the_usual_reading_of_a_plain_cnn_comes_first(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    _first_is_right(build, shape)


@pytest.mark.parametrize(
    "build",
    [
        # stride 2 instead of pooling, no padding, average pooling, odd kernels, dropout for pooling
        lambda: nn.Sequential(
            _conv(3, 4, stride=2),
            nn.ReLU(),
            _conv(4, 4, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 5),
        ),
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * 28 * 28, 5),
        ),
        lambda: nn.Sequential(
            _conv(3, 4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * 256, 5)
        ),
        lambda: nn.Sequential(
            _conv(3, 4), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(4 * 225, 5)
        ),
        lambda: nn.Sequential(
            _conv(3, 4),
            nn.ReLU(),
            nn.Dropout2d(),
            _conv(4, 4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * 256, 5),
        ),
        lambda: nn.Sequential(
            _conv(3, 4, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 256, 5)
        ),
        # activation before the norm, so that the second gap is the pooling
        lambda: nn.Sequential(
            _conv(3, 4),
            nn.ReLU(),
            nn.BatchNorm2d(4),
            nn.MaxPool2d(2),
            _conv(4, 4),
            nn.ReLU(),
            nn.BatchNorm2d(4),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 5),
        ),
        # pooling and activation before the norm
        lambda: nn.Sequential(
            _conv(3, 4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(4),
            _conv(4, 4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(1024, 5),
        ),
        # a convolution right after another, PReLU, and depthwise pairs
        lambda: nn.Sequential(
            _conv(3, 4),
            _conv(4, 4, groups=4),
            nn.PReLU(),
            nn.MaxPool2d(2),
            _conv(4, 6, 1),
            nn.PReLU(6),
            nn.Flatten(),
            nn.Linear(6 * 256, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, 6),
            nn.Linear(6, 5),
        ),
        # no linear layer at all: a map of logits, averaged
        lambda: nn.Sequential(
            _conv(3, 4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 5, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        # global pooling, statistics without weights
        lambda: nn.Sequential(
            _conv(3, 4),
            nn.BatchNorm2d(4, affine=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
            _conv(4, 4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 5),
        ),
        # tanh
        lambda: nn.Sequential(
            _conv(3, 4), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 256, 5)
        ),
    ],
    ids=[
        "stride",
        "valid",
        "average",
        "overlapping",
        "dropout",
        "even_kernel",
        "act_before_norm",
        "pool_before_norm",
        "prelu_depthwise",
        "fully_convolutional",
        "global_pooling",
        "tanh",
    ],
)
def test_the_true_reading_of_a_plain_cnn_is_among_the_candidates(
    build: Callable[[], nn.Module],
) -> None:
    module = seeded(build)
    weights = weights_of(module)
    assert _right(module, weights)
    assert len(identify_all(weights)) <= 64


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_norms_without_statistics_are_read_as_groups(groups: int) -> None:
    module = seeded(lambda: _norm_cnn(lambda channels: nn.GroupNorm(groups, channels)))
    weights = weights_of(module)
    right = _right(module, weights)
    assert right
    assert f"groups{groups}" in str(right[0].arguments["layout"])


def test_norms_without_statistics_are_also_read_as_batch_statistics() -> None:
    module = seeded(lambda: _norm_cnn(lambda c: nn.BatchNorm2d(c, track_running_stats=False)))
    weights = weights_of(module)
    assert _right(module, weights)


def test_groups_are_divisors_of_every_norm_up_to_32() -> None:
    weights = weights_of(_norm_cnn(lambda channels: nn.GroupNorm(1, channels)))
    layouts = [str(c.arguments["layout"]) for c in identify_all(weights)]
    groups = {layout.rpartition("-groups")[2] for layout in layouts if "-groups" in layout}
    assert groups == {"1", "2", "4", "8"}


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 16)])
def test_an_mlp_takes_the_square_images_that_its_inputs_allow(channels: int, side: int) -> None:
    inputs = channels * side * side
    module = seeded(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5)
        )
    )
    weights = weights_of(module)
    right = _right(module, weights, (2, channels, side, side))
    assert right[0].name == "plain_mlp"
    assert right[0].input_channels == channels
    assert right[0].input_sizes == (side,)


def test_an_mlp_whose_inputs_are_no_square_image_is_refused() -> None:
    weights = weights_of(nn.Sequential(nn.Flatten(), nn.Linear(17, 4), nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(UnknownArchitectureError):
        identify_all(weights)


@pytest.mark.parametrize(
    "build",
    [_cnn, TutorialNet, NamedNorms, Stages, Blocks, lambda: _norm_cnn(nn.BatchNorm2d)],
    ids=["sequence", "tutorial", "named_norms", "stages", "blocks", "batchnorm"],
)
def test_keys_sorted_by_name_give_the_same_candidates(build: Callable[[], nn.Module]) -> None:
    weights = weights_of(seeded(build))
    in_order = [dict(c.arguments) for c in identify_all(weights)]
    assert [dict(c.arguments) for c in identify_all(sorted_by_name(weights))] == in_order


def test_more_than_nine_numbered_layers_keep_their_order_in_a_sorted_file() -> None:
    def build() -> nn.Module:
        layers: list[nn.Module] = [_conv(3, 4), nn.ReLU()]
        for _ in range(5):
            layers += [_conv(4, 4), nn.ReLU()]
        return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 5))

    module = seeded(build)
    assert _right(module, sorted_by_name(weights_of(module)))


def test_at_most_64_candidates_are_offered_and_all_differ() -> None:
    weights = weights_of(TutorialNet())
    candidates = identify_all(weights)
    assert len(candidates) == 64
    assert len({str(c.arguments["layout"]) for c in candidates}) == 64


class UnusualSize(nn.Module):
    """Takes images that no list of usual sizes holds."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.conv1 = _conv(3, 2)
        self.conv2 = _conv(2, 2)
        self.fc = nn.Linear(2 * side * side, 5)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.conv2(functional.relu(self.conv1(x))))
        return self.fc(functional.max_pool2d(out, 2).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("side", [27, 97])
def test_an_unusual_input_size_is_found(side: int) -> None:
    module = seeded(lambda: UnusualSize(side))
    weights = weights_of(module)
    (right,) = _right(module, weights, (1, 3, 2 * side, 2 * side))
    assert 2 * side in right.input_sizes


def test_a_pickled_module_of_an_unusual_input_size_is_found() -> None:
    module = seeded(lambda: _cnn(side=5))
    weights = weights_of(module, with_hints=True)
    (candidate,) = identify_all(weights)
    assert candidate.input_sizes == (20, 21, 22, 23)
    assert agrees(candidate, weights, module, images((1, 3, 21, 21)))


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, (3, 5)), nn.Flatten(), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)),
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(5, 4, 1)),
        lambda: nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.Linear(12, 4), nn.Conv2d(4, 4, 1)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Bilinear(4, 4, 2)),
        lambda: nn.Sequential(*(nn.Linear(12, 12) for _ in range(200))),
    ],
)
def test_what_does_not_chain_is_refused(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(UnknownArchitectureError):
        identify_all(weights_of(build()))


class Residual(nn.Module):
    """A shortcut without a key."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 4)
        self.stage = nn.Sequential(nn.ModuleDict({"conv": _conv(4, 4)}))
        self.fc = nn.Linear(4, 5)


def test_layers_inside_blocks_are_refused_because_shortcuts_leave_no_key() -> None:
    with pytest.raises(UnknownArchitectureError):
        identify_all(weights_of(Residual()))


def test_nested_sequences_of_a_pickled_module_are_plain_all_the_same() -> None:
    module = seeded(
        lambda: nn.Sequential(
            nn.Sequential(nn.Sequential(_conv(3, 4), nn.ReLU()), nn.MaxPool2d(2)),
            nn.Sequential(
                nn.Sequential(_conv(4, 4), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))),
                nn.Sequential(),
            ),
            nn.Sequential(nn.Flatten(), nn.Linear(256, 5)),
        )
    )
    with pytest.raises(UnknownArchitectureError):
        identify_all(weights_of(module))
    (candidate,) = _right(module, weights_of(module, with_hints=True))
    assert candidate.name == "plain_cnn"


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(
            _conv(3, 4, 5, padding=1, stride=3),
            nn.GroupNorm(2, 4, eps=1e-3),
            nn.GELU(),
            nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            nn.Conv2d(4, 4, 3, padding="same", dilation=2, padding_mode="reflect"),
            nn.InstanceNorm2d(4, affine=True),
            nn.ELU(0.5),
            nn.AdaptiveMaxPool2d(3),
            nn.Flatten(),
            nn.Linear(36, 8),
            nn.LayerNorm(8),
            nn.Hardtanh(-2.0, 0.5),
            nn.Linear(8, 5),
        ),
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding="valid"),
            nn.BatchNorm2d(4, track_running_stats=False),
            nn.SiLU(),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Flatten(),
            nn.Linear(4 * 225, 5),
        ),
        lambda: nn.Sequential(
            _conv(3, 4), nn.Identity(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 256, 5)
        ),
    ],
    ids=["everything", "batch_statistics", "without_activation"],
)
def test_a_pickled_sequence_is_one_candidate_and_exact(build: Callable[[], nn.Module]) -> None:
    module = seeded(build)
    weights = weights_of(module, with_hints=True)
    (candidate,) = identify_all(weights)
    assert agrees(candidate, weights, module, images((2, 3, 32, 32)))
    assert "as pickled" in candidate.notes[0]


@pytest.mark.parametrize("is_pooled", [False, True])
def test_registered_poolings_and_activations_are_preferred(is_pooled: bool) -> None:
    module = seeded(lambda: Blocks(is_pooled=is_pooled))
    weights = weights_of(module, with_hints=True)
    first = identify_all(weights)[0]
    assert agrees(first, weights, module, images((2, 3, 32, 32)))


def test_a_pooling_registered_once_and_used_twice_is_understood() -> None:
    module = seeded(TutorialNet)
    weights = weights_of(module, with_hints=True)
    candidates = identify_all(weights)
    assert agrees(candidates[0], weights, module, images((2, 3, 32, 32)))
    assert len(candidates) < 64


class Listed(nn.Module):
    """Layers in lists, which say nothing of the order of the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([_conv(3, 4), _conv(4, 4)])
        self.head = nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = functional.max_pool2d(functional.relu(conv(x)), 2)
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


def test_a_module_list_is_read_by_the_rules() -> None:
    module = seeded(Listed)
    weights = weights_of(module, with_hints=True)
    assert agrees(identify_all(weights)[0], weights, module, images((2, 3, 32, 32)))


def test_a_hint_deeper_than_any_plain_network_is_not_followed() -> None:
    act: nn.Module = nn.ReLU()
    for _ in range(20):
        act = nn.Sequential(act)
    module = nn.Sequential(nn.Linear(12, 4), act, nn.Linear(4, 2))
    candidates = identify_all(weights_of(module, with_hints=True))
    assert "ReLU" not in str(candidates[0].arguments["layout"])


def test_partial_hints_fall_back_to_the_rules() -> None:
    module = seeded(_cnn)
    hints = {"0": hints_of(module)["0"]}
    weights = Weights(tensors=module.state_dict(), hints=hints)
    first = identify_all(weights)[0]
    assert agrees(first, weights, module, images((2, 3, 32, 32)))


class Reshape(nn.Module):
    """A stranger's flattening."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Swish(nn.Module):
    """A stranger's activation; taken for the usual one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=0)


def test_a_strangers_class_is_taken_for_an_activation_or_a_reshape() -> None:
    module = seeded(
        lambda: nn.Sequential(
            _conv(3, 4), Swish(), nn.MaxPool2d(2), Reshape(), nn.Linear(4 * 256, 5)
        )
    )
    weights = weights_of(module, with_hints=True)
    assert agrees(identify_all(weights)[0], weights, module, images((2, 3, 32, 32)))


def test_a_layer_of_torchs_that_is_not_understood_is_refused_and_not_guessed() -> None:
    module = nn.Sequential(
        _conv(3, 4), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Flatten(), nn.Linear(4 * 4096, 5)
    )
    with pytest.raises(UnknownArchitectureError):
        identify_all(weights_of(module, with_hints=True))


@pytest.mark.parametrize(
    ("path", "attributes"),
    [
        ("1", {"num_groups": 0}),
        ("1", {"num_groups": 3}),
        ("1", {"num_groups": "two"}),
        ("0", {"stride": (5, 6)}),
        ("0", {"padding": "same", "stride": (1, 1), "dilation": (1, 1)}),
    ],
)
def test_hints_that_cannot_be_followed_leave_the_rules(
    path: str, attributes: dict[str, object]
) -> None:
    module = seeded(
        lambda: nn.Sequential(
            _conv(3, 4, 4 if path == "0" else 3),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * 256, 5),
        )
    )
    hints = hints_of(module)
    hints[path] = ModuleHint(
        class_name=hints[path].class_name,
        attributes={**hints[path].attributes, **attributes},  # type: ignore[dict-item]
    )
    assert identify_all(Weights(tensors=module.state_dict(), hints=hints))


def test_the_module_registers_its_parts_at_the_files_paths() -> None:
    module = PlainSequence(
        [("a.b.0", nn.Linear(2, 3)), ("a.act", nn.ReLU()), ("c", nn.Linear(3, 2))]
    )
    assert list(module.state_dict()) == ["a.b.0.weight", "a.b.0.bias", "c.weight", "c.bias"]
    assert module(torch.ones(1, 2)).shape == (1, 2)


def test_the_family_announces_its_two_names() -> None:
    assert tuple(PlainSequenceFamily().names()) == ("plain_cnn", "plain_mlp")
