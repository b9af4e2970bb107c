from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from modelaudit.errors import ConfigError, DataError, FitError
from modelaudit.fit import Fit, TrainingCrop, fit
from modelaudit.preprocessing import Preprocessing
from tests.helpers.fit import CPU, Broken, TinyNet, candidate, load, memorised, planted, preset
from tests.helpers.images import clean_set

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from modelaudit.architectures.base import Candidate
    from modelaudit.cleanset import CleanSet

NAMES = ("ant", "bee", "cow", "dog")
NUMBERS = ("0", "1", "2", "3")


def run(
    candidates: Sequence[Candidate],
    clean: CleanSet,
    *,
    preprocessing: Preprocessing | None = None,
    input_size: int | None = None,
    classes: Sequence[str] | None = None,
    loader: Callable[[Candidate], nn.Module] = load,
    batch_size: int = 128,
) -> Fit:
    return fit(
        candidates,
        loader,
        clean,
        clean.split(0),
        preprocessing=preprocessing,
        input_size=input_size,
        classes=classes,
        device=CPU,
        batch_size=batch_size,
    )


def folder_targets(clean: CleanSet) -> list[int]:
    return [int(name.split("/")[0]) for name in clean.names]


def planted_fit(clean: CleanSet, name: str = "gtsrb", **options: object) -> Fit:
    net = planted(clean, folder_targets(clean), num_classes=4, preprocessing=preset(name))
    return run([candidate(net, num_classes=4)], clean, **options)  # type: ignore[arg-type]  # passed on as they are


def choice(result: Fit, name: str) -> str:
    return next(c.value for c in result.choices if c.name == name)


def state_hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


# --- normalisation


@pytest.mark.parametrize("name", ["none", "cifar10_0.2023", "cifar10_0.247", "gtsrb", "half"])
def test_normalisation_of_the_running_statistics_is_found(name: str) -> None:
    result = planted_fit(clean_set(NAMES, per_folder=40), name)
    assert result.preprocessing == preset(name)
    assert result.passes_gate
    assert result.divergence is not None
    assert result.divergence < 0.01
    assert result.preprocessing_is_certain
    assert result.training_crop is TrainingCrop.NONE


def test_accuracy_alone_would_have_taken_the_wrong_normalisation() -> None:
    clean = clean_set(NAMES, per_folder=40)
    net = planted(clean, folder_targets(clean), num_classes=4, preprocessing=preset("gtsrb"))
    result = run([candidate(net, num_classes=4)], clean)
    rival = next(c for c in result.choices if c.name == "preprocessing")
    assert rival.value == "gtsrb"
    assert rival.runner_up not in {"", "gtsrb"}
    assert "first-layer divergence" in rival.margin
    assert "against accuracy 1.000" in rival.margin


@pytest.mark.parametrize("crop", [TrainingCrop.BLACK, TrainingCrop.MEAN])
def test_padding_of_training_crops_does_not_hide_the_normalisation(crop: TrainingCrop) -> None:
    clean = clean_set(NAMES, per_folder=40)
    net = planted(
        clean,
        folder_targets(clean),
        num_classes=4,
        preprocessing=preset("cifar10_0.2023"),
        crop=crop,
    )
    result = run([candidate(net, num_classes=4)], clean)
    assert result.preprocessing.id == "cifar10_0.2023"
    assert result.training_crop is crop
    assert result.divergence is not None
    assert result.divergence < 0.005
    assert choice(result, "training_crop") == crop.value


def test_unknown_normalisation_is_noted() -> None:
    clean = clean_set(NAMES, per_folder=40)
    odd = Preprocessing(id="odd", mean=(0.2, 0.7, 0.1), std=(0.4, 0.15, 0.3))
    net = planted(clean, folder_targets(clean), num_classes=4, preprocessing=odd)
    result = run(
        [candidate(net, num_classes=4)], clean, preprocessing=preset("imagenet"), classes=NAMES
    )
    assert any("not those of the clean images" in note for note in result.notes)


def test_given_normalisation_is_taken() -> None:
    result = planted_fit(clean_set(NAMES), "gtsrb", preprocessing=preset("imagenet"))
    assert result.preprocessing.id == "imagenet"
    assert next(c for c in result.choices if c.name == "preprocessing").is_given


def test_given_normalisation_of_other_channels_is_an_error() -> None:
    wrong = Preprocessing(id="custom", mean=(0.1, 0.2), std=(1.0, 1.0))
    with pytest.raises(ConfigError, match="3 channels"):
        planted_fit(clean_set(NAMES), preprocessing=wrong)


def test_one_channel_model_is_fed_grey() -> None:
    clean = clean_set(NAMES, per_folder=40)
    net = planted(
        clean, folder_targets(clean), num_classes=4, preprocessing=preset("mnist"), channels=1
    )
    result = run([candidate(net, num_classes=4, channels=1)], clean)
    assert result.preprocessing == preset("mnist")
    assert result.input_channels == 1
    assert result.passes_gate


# --- unlabelled images


def test_unlabelled_images_have_no_accuracy_but_a_normalisation() -> None:
    result = planted_fit(clean_set(NAMES, per_folder=40, is_labelled=False), "half")
    assert result.preprocessing.id == "half"
    assert result.preprocessing_is_certain
    assert result.accuracy is None
    assert result.accuracy_interval is None
    assert result.labels is None
    assert result.passes_gate
    assert result.class_names == ("", "", "", "")
    assert "labels" not in {c.name for c in result.choices}


def plain_net(clean: CleanSet) -> TinyNet:
    return planted(
        clean,
        folder_targets(clean),
        num_classes=4,
        preprocessing=preset("half"),
        has_norm=False,
    )


def test_unlabelled_images_without_batchnorm_leave_the_normalisation_uncertain() -> None:
    clean = clean_set(NAMES, per_folder=20, is_labelled=False)
    result = run([candidate(plain_net(clean), num_classes=4)], clean)
    assert not result.preprocessing_is_certain
    assert result.divergence is None
    assert any("is a guess by the model's confidence" in note for note in result.notes)
    given = run([candidate(plain_net(clean), num_classes=4)], clean, preprocessing=preset("half"))
    assert given.preprocessing_is_certain
    assert given.notes == ()


def test_unlabelled_images_of_other_statistics_leave_the_normalisation_uncertain() -> None:
    seen = clean_set(NAMES, per_folder=20)
    net = planted(seen, folder_targets(seen), num_classes=4, preprocessing=preset("half"))
    net.bn.running_var.mul_(9)  # type: ignore[union-attr, operator]  # the net has a BatchNorm2d
    other = clean_set(NAMES, per_folder=20, is_labelled=False)
    result = run([candidate(net, num_classes=4, sizes=(12,))], other, input_size=12)
    assert not result.preprocessing_is_certain


def test_unlabelled_tie_of_architectures_is_an_error() -> None:
    clean = clean_set(NAMES, per_folder=20, is_labelled=False)
    first, second = plain_net(clean), plain_net(clean)
    second.head.weight.copy_(first.head.weight.roll(1, 0))
    second.head.bias.copy_(first.head.bias.roll(1, 0))
    pair = [
        candidate(first, num_classes=4, name="one"),
        candidate(second, num_classes=4, name="two"),
    ]
    with pytest.raises(FitError, match="choose with --arch"):
        run(pair, clean)


# --- labels


def test_integer_folder_names_are_the_outputs() -> None:
    clean = clean_set(("3", "1", "0"), pictures=(0, 1, 2), per_folder=30)
    targets = [(3, 1, 0)[int(name.split("/")[0])] for name in clean.names]
    net = planted(clean, targets, num_classes=4, preprocessing=preset("none"))
    result = run([candidate(net, num_classes=4)], clean)
    assert result.labels is not None
    assert result.labels.tolist() == targets
    assert result.class_names == ("", "", "", "")
    assert choice(result, "labels") == "folder names are the outputs"


def test_integer_folder_names_may_count_from_one() -> None:
    clean = clean_set(("1", "2", "3", "4"), per_folder=30)
    net = planted(clean, folder_targets(clean), num_classes=4, preprocessing=preset("none"))
    result = run([candidate(net, num_classes=4)], clean)
    assert result.accuracy == 1.0
    assert choice(result, "labels") == "folder names are the outputs counted from one"


def test_wrong_integer_labels_miss_the_gate_without_an_error() -> None:
    clean = clean_set(NUMBERS, per_folder=30)
    targets = [(label + 1) % 4 for label in folder_targets(clean)]
    net = planted(clean, targets, num_classes=4, preprocessing=preset("none"))
    result = run([candidate(net, num_classes=4)], clean, preprocessing=preset("none"))
    assert not result.passes_gate
    assert result.accuracy == 0.0
    assert any("lead to output 1, not to 0" in note for note in result.notes)


def test_named_folders_are_sorted() -> None:
    result = planted_fit(clean_set(NAMES, per_folder=40))
    assert result.accuracy == 1.0
    assert result.accuracy_interval is not None
    assert result.accuracy_interval[0] > 0.9
    assert result.class_names == NAMES
    assert choice(result, "labels") == "sorted folder names"


def test_named_folders_may_be_sorted_naturally() -> None:
    names = ("class1", "class2", "class10", "class11")
    result = planted_fit(clean_set(names, per_folder=40))
    assert result.class_names == names
    assert choice(result, "labels") == "folder names in natural order"


def test_sorted_names_may_need_all_search_images() -> None:
    clean = clean_set(NAMES, per_folder=125)
    # 46 % right: enough for the gate of 40 % at 300 images, not at 64.
    right = np.array(folder_targets(clean))
    outputs = np.where(np.arange(500) % 50 < 23, right, (right + np.arange(500) % 3 + 1) % 4)
    net = memorised(clean, outputs)
    result = run([candidate(net, num_classes=4)], clean, preprocessing=preset("none"))
    assert choice(result, "labels") == "sorted folder names"
    assert result.accuracy == pytest.approx(0.46, abs=0.06)


def test_majority_names_the_outputs_when_the_order_does_not() -> None:
    clean = clean_set(NAMES[:3], per_folder=40)
    order = (5, 0, 3)
    targets = [order[label] for label in folder_targets(clean)]
    net = planted(clean, targets, num_classes=6, preprocessing=preset("none"))
    result = run([candidate(net, num_classes=6)], clean)
    assert choice(result, "labels") == "each folder's majority prediction"
    assert result.class_names == ("bee", "", "", "cow", "", "ant")
    assert result.accuracy == 1.0


def test_class_file_names_the_outputs() -> None:
    clean = clean_set(NAMES, per_folder=30)
    order = (2, 0, 3, 1)
    targets = [order[label] for label in folder_targets(clean)]
    net = planted(clean, targets, num_classes=4, preprocessing=preset("none"))
    classes = ("bee", "dog", "ant", "cow")
    result = run([candidate(net, num_classes=4)], clean, classes=classes)
    assert result.accuracy == 1.0
    assert result.class_names == classes
    assert next(c for c in result.choices if c.name == "labels").is_given


def test_class_file_that_does_not_fit_the_images_misses_the_gate() -> None:
    result = planted_fit(clean_set(NAMES, per_folder=30), classes=("bee", "ant", "dog", "cow"))
    assert not result.passes_gate


def test_folders_that_no_map_fits_are_an_error() -> None:
    clean = clean_set(NAMES, per_folder=30)
    net = planted(clean, [0] * 120, num_classes=4, preprocessing=preset("none"))
    with pytest.raises(FitError, match=r"\('ant', 'bee', 'cow', \.\.\.\) do not tell .* --classes"):
        run([candidate(net, num_classes=4)], clean)


def test_one_mislabelled_folder_is_noted() -> None:
    clean = clean_set(NAMES, per_folder=40)
    targets = [3 if label == 2 else label for label in folder_targets(clean)]
    net = planted(clean, targets, num_classes=4, preprocessing=preset("none"))
    result = run([candidate(net, num_classes=4)], clean)
    assert result.accuracy == pytest.approx(0.75)
    assert [n for n in result.notes if "100% of the images in 'cow' lead to output 3" in n]


def test_more_folders_than_outputs_is_an_error() -> None:
    clean = clean_set(NAMES)
    with pytest.raises(DataError, match="the model has 3 outputs, the clean folder 4 classes"):
        run([candidate(TinyNet(3), num_classes=3)], clean)


def test_one_output_is_an_error() -> None:
    with pytest.raises(FitError, match="one output"):
        run([candidate(TinyNet(1), num_classes=1)], clean_set(NAMES))


def test_one_image_is_an_error() -> None:
    clean = clean_set(NAMES[:1], per_folder=1, is_labelled=False)
    with pytest.raises(DataError, match="at least 2 clean images, found 1"):
        run([candidate(TinyNet(4), num_classes=4)], clean)


def test_no_candidate_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="at least one candidate"):
        run([], clean_set(NAMES))


# --- ties


def disagreeing(clean: CleanSet, count: int) -> tuple[Broken, Broken]:
    """Two nets that are each wrong on `count` search images of their own."""
    split = clean.split(0)
    right = np.array(folder_targets(clean))
    nets: list[Broken] = []
    for first in (0, count):
        outputs = right.copy()
        outputs[split.search[first : first + count]] += 1
        nets.append(memorised(clean, outputs % 4))
    return nets[0], nets[1]


def test_tie_that_predicts_otherwise_is_an_error() -> None:
    clean = clean_set(NUMBERS, per_folder=30)
    first, second = disagreeing(clean, 2)
    pair = [
        candidate(first, num_classes=4, name="one"),
        candidate(second, num_classes=4, name="two"),
    ]
    with pytest.raises(
        FitError, match=r"one and two fit .* differently on .*%; choose with --arch"
    ):
        run(pair, clean, preprocessing=preset("none"))


def test_tie_that_predicts_the_same_is_noted() -> None:
    clean = clean_set(NUMBERS, per_folder=30)
    first = memorised(clean, np.array(folder_targets(clean)))
    second, _ = disagreeing(clean, 1)
    pair = [
        candidate(first, num_classes=4, name="net", arguments={"groups": 2}),
        candidate(second, num_classes=4, name="net", arguments={"groups": 4}),
    ]
    result = run(pair, clean, preprocessing=preset("none"))
    assert choice(result, "architecture") == "net(groups=2)"
    assert any("net(groups=4) does as well as net(groups=2)" in note for note in result.notes)


def test_tie_of_normalisations_asks_for_one() -> None:
    clean = clean_set(NUMBERS, per_folder=30)
    right = torch.tensor(folder_targets(clean))
    brightness = clean.tensor(16, 3).mean(dim=(1, 2, 3))
    usual = (preset("none"), preset("half"))

    def act(x: Tensor) -> Tensor:
        means = x.mean(dim=(1, 2, 3))
        outputs = torch.zeros(len(x), dtype=torch.int64)
        for wrong, known in enumerate(usual):
            expected = (brightness - known.mean[0]) / known.std[0]
            distance = (means[:, None] - expected).abs()
            index = distance.argmin(dim=1)
            said = torch.where(index % 8 == wrong, (right[index] + 1) % 4, right[index])
            outputs = torch.where(distance.amin(dim=1) < 1e-5, said, outputs)
        return nn.functional.one_hot(outputs, 4).float()

    with pytest.raises(FitError, match=r"'none' and .* 'half' .*; choose with --preprocess"):
        run([candidate(Broken(act), num_classes=4)], clean)


def test_tie_below_the_gate_is_no_error() -> None:
    clean = clean_set(NUMBERS, per_folder=30)

    def constant(output: int) -> Broken:
        return Broken(lambda x: nn.functional.one_hot(torch.full((len(x),), output), 4).float())

    pair = [candidate(constant(i), num_classes=4, name=f"net{i}") for i in range(2)]
    result = run(pair, clean)
    assert not result.passes_gate
    assert result.candidate.name == "net0"


def test_better_architecture_wins() -> None:
    clean = clean_set(NAMES, per_folder=30)
    right = planted(clean, folder_targets(clean), num_classes=4, preprocessing=preset("half"))
    wrong = TinyNet(4)
    wrong.load_state_dict(
        {k: (v if "head" not in k else v.flip(0)) for k, v in right.state_dict().items()},
        strict=False,
    )
    pair = [
        candidate(n, num_classes=4, name=m) for n, m in ((wrong.eval(), "bad"), (right, "good"))
    ]
    result = run(pair, clean)
    assert result.candidate.name == "good"
    assert result.module is right
    rival = next(c for c in result.choices if c.name == "architecture")
    assert rival.runner_up == "bad"


def test_many_architectures_are_thinned_out() -> None:
    clean = clean_set(NAMES, per_folder=30)
    right = planted(clean, folder_targets(clean), num_classes=4, preprocessing=preset("half"))
    calls: list[int] = []

    def act(x: Tensor) -> Tensor:
        calls.append(len(x))
        return torch.zeros(len(x), 4)

    others = [candidate(Broken(act), num_classes=4, name=f"n{i}") for i in range(12)]
    result = run([*others, candidate(right, num_classes=4, name="right")], clean)
    assert result.candidate.name == "right"
    assert result.preprocessing.id == "half"
    assert sum(calls) == 12 * 3 * 32


def test_thinning_out_knows_integer_labels() -> None:
    clean = clean_set(NUMBERS, per_folder=30)
    right = planted(clean, folder_targets(clean), num_classes=4, preprocessing=preset("gtsrb"))
    others = [
        candidate(Broken(lambda x: torch.zeros(len(x), 4)), num_classes=4, name=f"n{i}")
        for i in range(6)
    ]
    result = run(
        [*others, candidate(right, num_classes=4, name="right")],
        clean,
        preprocessing=preset("gtsrb"),
    )
    assert result.candidate.name == "right"


# --- sizes


def test_native_size_is_tried_alone() -> None:
    clean = clean_set(NAMES, per_folder=30)
    net = planted(clean, folder_targets(clean), num_classes=4, preprocessing=preset("half"))
    result = run([candidate(net, num_classes=4, sizes=(32, 16, 64))], clean)
    assert result.input_size == 16
    assert next(c for c in result.choices if c.name == "input_size").runner_up == ""


def test_other_sizes_are_tried_when_the_native_one_fails() -> None:
    clean = clean_set(NAMES, per_folder=30)
    net = planted(
        clean, folder_targets(clean), num_classes=4, preprocessing=preset("half"), size=24
    )

    def act(x: Tensor) -> Tensor:
        if x.shape[-1] == 16:
            return torch.zeros(len(x), 4)
        out: Tensor = net(x)
        return out

    result = run([candidate(Broken(act), num_classes=4, sizes=(16, 24))], clean)
    assert result.input_size == 24
    assert result.passes_gate


def test_size_takes_part_in_the_choice() -> None:
    clean = clean_set(NAMES, per_folder=30)
    net = planted(
        clean, folder_targets(clean), num_classes=4, preprocessing=preset("half"), size=24
    )
    result = run([candidate(net, num_classes=4, sizes=(32, 24))], clean)
    assert result.input_size == 24
    assert next(c for c in result.choices if c.name == "input_size").runner_up == "32"


def test_given_size_is_taken() -> None:
    result = planted_fit(clean_set(NAMES, per_folder=30), input_size=20)
    assert result.input_size == 20
    assert next(c for c in result.choices if c.name == "input_size").is_given


def test_tie_of_sizes_asks_for_one() -> None:
    clean = clean_set(NUMBERS, per_folder=30)
    right = np.array(folder_targets(clean))
    wrong = [np.where(np.arange(120) % 8 == i, (right + 1) % 4, right) for i in range(2)]
    nets = {size: memorised(clean, wrong[i], size=size) for i, size in enumerate((20, 24))}
    net = candidate(Broken(lambda x: nets[x.shape[-1]](x)), num_classes=4, sizes=(20, 24))
    with pytest.raises(FitError, match=r"input size 2[04] .* choose with --input-size"):
        run([net], clean, preprocessing=preset("none"))


def test_architecture_without_sizes_gets_the_usual_ones() -> None:
    clean = clean_set(NAMES, per_folder=10, size=32)
    net = planted(
        clean, folder_targets(clean), num_classes=4, preprocessing=preset("half"), size=32
    )
    assert run([candidate(net, num_classes=4, sizes=())], clean).input_size == 32


# --- models that nothing fits

EIGHT_NAMES = tuple("abcdefgh")
EIGHT_NUMBERS = tuple("01234567")


class Counting(Broken):
    """Predicts one of eight classes at any size and counts the images of each size."""

    def __init__(self, predict: Callable[[Tensor], Tensor]) -> None:
        self.images: dict[int, int] = {}

        def act(x: Tensor) -> Tensor:
            self.images[x.shape[-1]] = self.images.get(x.shape[-1], 0) + len(x)
            return nn.functional.one_hot(predict(x), 8).float()

        super().__init__(act)


def constant(x: Tensor) -> Tensor:
    return torch.ones(len(x), dtype=torch.int64)


def arbitrary(x: Tensor) -> Tensor:
    """Look random, and say the same of the same image."""
    return (x.mean(dim=(1, 2, 3)) * 1e4).long() % 8


def test_a_hopeless_model_is_given_up_after_a_first_look_at_each_size() -> None:
    net = Counting(constant)
    with pytest.raises(FitError, match="do not tell"):
        run([candidate(net, num_classes=8, sizes=(40, 16, 24))], clean_set(EIGHT_NAMES))
    # All seven normalisations at the images' own size, three at the others.
    assert net.images == {16: 7 * 64, 24: 3 * 32, 40: 3 * 32}


def test_a_hopeless_model_with_known_labels_is_reported_at_its_own_size() -> None:
    net = Counting(constant)
    result = run([candidate(net, num_classes=8, sizes=(24, 16))], clean_set(EIGHT_NUMBERS))
    assert not result.passes_gate
    assert result.input_size == 16
    assert net.images[24] == 3 * 32


def test_a_hopeless_model_of_many_sizes_keeps_the_smallest() -> None:
    net = Counting(constant)
    sizes = (32, 24, 20, 28, 36)
    result = run([candidate(net, num_classes=8, sizes=sizes)], clean_set(EIGHT_NUMBERS))
    assert result.input_size == 20
    assert {net.images[size] for size in sizes if size != 20} == {3 * 32}


def test_a_doubtful_model_is_run_on_all_search_images_once() -> None:
    net = Counting(arbitrary)
    clean = clean_set(EIGHT_NAMES, per_folder=50)
    with pytest.raises(FitError, match="do not tell"):
        run([candidate(net, num_classes=8)], clean)
    assert net.images == {16: 7 * 64 + 240}


# --- candidates that cannot be run


def test_many_candidates_that_cannot_be_run_are_an_error() -> None:
    others = [candidate(Broken(fails), num_classes=4, name=f"n{i}") for i in range(6)]
    with pytest.raises(FitError, match="n0: mat1 and mat2"):
        run(others, clean_set(NAMES))


def fails(x: Tensor) -> object:
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nsecond line")


def looks_up(x: Tensor) -> object:
    raise AssertionError


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (fails, "mat1 and mat2 shapes cannot be multiplied"),
        (looks_up, "AssertionError"),
        (lambda x: (x, x), "found tuple"),
        (lambda x: torch.zeros(len(x), 5), r"found \(64, 5\)"),
        (lambda x: torch.full((len(x), 4), torch.nan), "not finite"),
    ],
)
def test_candidate_that_cannot_be_run_is_left_out_with_the_reason(
    act: Callable[[Tensor], object], reason: str
) -> None:
    clean = clean_set(NAMES, per_folder=30)
    bad = candidate(Broken(act), num_classes=4, name="bad")
    with pytest.raises(FitError, match=f"no architecture .*{reason}.*; give --arch"):
        run([bad], clean)
    good = planted(clean, folder_targets(clean), num_classes=4, preprocessing=preset("half"))
    result = run([bad, candidate(good, num_classes=4, name="good")], clean)
    assert result.candidate.name == "good"
    assert any(note.startswith("bad was left out: ") for note in result.notes)


def test_candidates_of_other_channels_or_outputs_are_left_out() -> None:
    clean = clean_set(NAMES, per_folder=30)
    good = planted(clean, folder_targets(clean), num_classes=4, preprocessing=preset("half"))
    result = run(
        [
            candidate(good, num_classes=4, name="good"),
            candidate(TinyNet(9), num_classes=9, name="wide"),
            candidate(TinyNet(4, channels=2), num_classes=4, channels=2, name="deep"),
        ],
        clean,
    )
    assert "wide was left out: it has 9 outputs, not 4" in result.notes
    assert "deep was left out: it takes 2 input channels, not 1 or 3" in result.notes


def test_nothing_but_unusable_candidates_is_an_error() -> None:
    net = candidate(TinyNet(4, channels=2), num_classes=4, channels=2)
    with pytest.raises(FitError, match="takes 2 input channels"):
        run([net], clean_set(NAMES))


def not_finite_on(images: Tensor, net: nn.Module) -> Broken:
    def act(x: Tensor) -> Tensor:
        logits: Tensor = net(x).clone()
        for image in images:
            logits[(x - image).abs().amax(dim=(1, 2, 3)) < 1e-6] = torch.inf
        return logits

    return Broken(act)


def test_winner_that_fails_on_a_judging_image_is_an_error() -> None:
    clean = clean_set(NUMBERS, per_folder=30)
    net = planted(clean, folder_targets(clean), num_classes=4, preprocessing=preset("none"))
    images = clean.tensor(16, 3)[clean.split(0).judge[:1]]
    with pytest.raises(FitError, match="not finite"):
        run(
            [candidate(not_finite_on(images, net), num_classes=4)],
            clean,
            preprocessing=preset("none"),
        )


def test_runner_up_that_fails_on_a_judging_image_is_said_in_the_margin() -> None:
    clean = clean_set(NUMBERS, per_folder=30)
    net = planted(clean, folder_targets(clean), num_classes=4, preprocessing=preset("none"))
    images = clean.tensor(16, 3)[clean.split(0).judge[:1]]
    pair = [
        candidate(net, num_classes=4, name="one"),
        candidate(not_finite_on(images, net), num_classes=4, name="two"),
    ]
    result = run(pair, clean, preprocessing=preset("none"))
    assert result.candidate.name == "one"
    assert "against none (its logits are not finite" in result.choices[0].margin


def test_contenders_that_fail_on_later_images_are_left_out() -> None:
    clean = clean_set(NUMBERS, per_folder=60)
    net = planted(clean, folder_targets(clean), num_classes=4, preprocessing=preset("none"))
    split = clean.split(0)
    later = np.setdiff1d(split.search, clean.stratified(split.search, 64))
    broken = not_finite_on(clean.tensor(16, 3)[later[:1]], net)
    pair = [candidate(broken, num_classes=4, name="one"), candidate(net, num_classes=4, name="two")]
    result = run(pair, clean, preprocessing=preset("none"))
    assert result.candidate.name == "two"
    twins = [candidate(broken, num_classes=4, name=name) for name in ("one", "two")]
    with pytest.raises(FitError, match=r"no architecture .* not finite"):
        run(twins, clean, preprocessing=preset("none"))


# --- contract


def test_suspect_is_untouched_and_hooks_are_gone() -> None:
    clean = clean_set(NAMES, per_folder=30)
    net = planted(clean, folder_targets(clean), num_classes=4, preprocessing=preset("imagenet"))
    before = state_hash(net)
    result = run([candidate(net, num_classes=4)], clean)
    assert state_hash(net) == before
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert not result.module.training


def test_hooks_are_removed_after_an_error() -> None:
    clean = clean_set(NAMES, per_folder=30)
    net = planted(clean, folder_targets(clean), num_classes=4, preprocessing=preset("imagenet"))
    interrupted = KeyboardInterrupt()

    class Stop(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            if self.bn._forward_pre_hooks:
                raise interrupted
            return super().forward(x)

    stop = Stop(4).eval()
    stop.load_state_dict(net.state_dict(), strict=False)
    with pytest.raises(KeyboardInterrupt):
        run([candidate(stop, num_classes=4)], clean)
    assert not any(module._forward_pre_hooks for module in stop.modules())


def test_same_input_gives_the_same_fit_at_any_batch_size() -> None:
    clean = clean_set(NAMES, per_folder=30)
    first = planted_fit(clean)
    second = planted_fit(clean, batch_size=7)
    assert first.choices == second.choices
    assert first.notes == second.notes
    assert torch.equal(first.predictions, second.predictions)
    assert first.divergence == pytest.approx(second.divergence, rel=1e-6)


def test_passes_are_counted() -> None:
    clean = clean_set(NAMES, per_folder=30)
    seen: list[int] = []
    net = plain_net(clean)

    def act(x: Tensor) -> Tensor:
        seen.append(len(x))
        out: Tensor = net(x)
        return out

    result = run([candidate(Broken(act), num_classes=4)], clean, preprocessing=preset("half"))
    assert result.forward_passes == sum(seen) == 64 + 120
    assert result.stem_passes == 0


def test_labels_and_predictions_are_those_of_all_images() -> None:
    clean = clean_set(NAMES, per_folder=30)
    result = planted_fit(clean)
    assert result.labels is not None
    assert result.labels.dtype == result.predictions.dtype == torch.int64
    assert result.labels.tolist() == folder_targets(clean)
    judge = torch.from_numpy(clean.split(0).judge)
    share = (result.labels == result.predictions)[judge].double().mean().item()
    assert result.accuracy == pytest.approx(share)


def test_batchnorm_of_a_flat_net_counts() -> None:
    clean = clean_set(NUMBERS, per_folder=30, is_labelled=False)
    generator = torch.Generator().manual_seed(0)
    first, norm = nn.Linear(768, 8), nn.BatchNorm1d(8)
    flat = nn.Sequential(nn.Flatten(), first, norm, nn.Linear(8, 4))
    flat.eval().requires_grad_(False)
    for parameter in flat.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    seen = first(clean.tensor(16, 3).flatten(1) * 2 - 1)
    norm.running_mean.copy_(seen.mean(0))
    norm.running_var.copy_(seen.var(0))
    result = run([candidate(flat, num_classes=4)], clean)
    assert result.preprocessing.id == "half"
    assert result.divergence is not None


def test_net_of_dead_channels_has_no_divergence() -> None:
    clean = clean_set(NAMES, per_folder=30)
    net = planted(clean, folder_targets(clean), num_classes=4, preprocessing=preset("half"))
    net.conv.weight.zero_()
    result = run(
        [candidate(net, num_classes=4)], clean, preprocessing=preset("half"), classes=NAMES
    )
    assert result.divergence is None


def test_batchnorm_that_is_never_reached_has_no_divergence() -> None:
    clean = clean_set(NAMES, per_folder=30)
    net = plain_net(clean)
    net.add_module("unused", nn.BatchNorm2d(3))
    assert (
        run([candidate(net, num_classes=4)], clean, preprocessing=preset("half")).divergence is None
    )
