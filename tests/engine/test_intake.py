from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modelaudit.engine import ScanRequest, intake
from modelaudit.engine.intake import Opened, Stopwatch, open_suspect
from modelaudit.errors import (
    ConfigError,
    CorruptCheckpointError,
    DataError,
    FitError,
    TooFewImagesError,
    UnknownArchitectureError,
)
from modelaudit.progress import NoProgress
from tests.helpers.engine import FOLDERS, HALF, SIDE, trained, write_checkpoint, write_data
from tests.helpers.images import encoded, picture, write_folders

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from modelaudit.fit import Fit

PER_FOLDER = 8

FACTORY = """
from modelaudit.architectures.cifar_resnet import CifarResNet

def build(num_classes):
    return CifarResNet(width=4, num_classes=num_classes)
"""


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return trained(PER_FOLDER)


@pytest.fixture(scope="module")
def checkpoint(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model.pt", net)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "clean", PER_FOLDER)


def opened(checkpoint: Path, data: Path, **options: Any) -> Opened:
    """Open with everything given that the fit would otherwise work out."""
    given = {"preprocessing": HALF, "input_size": SIDE} | options
    request = ScanRequest(checkpoint=checkpoint, data=data, **given)
    return open_suspect(request, progress=NoProgress(), stopwatch=Stopwatch())


def test_a_checkpoint_and_a_folder_become_a_suspect_with_its_images(
    checkpoint: Path, data: Path
) -> None:
    found = opened(checkpoint, data)
    n = len(FOLDERS) * PER_FOLDER
    assert found.suspect.num_classes == len(FOLDERS)
    assert found.suspect.preprocessing == HALF
    assert found.clean.images.shape == (n, 3, SIDE, SIDE)
    assert found.clean.as_trained.shape == found.clean.images.shape
    assert found.clean.has_labels
    assert found.clean.mixture is None
    together = torch.cat([found.clean.search, found.clean.judge])
    assert torch.equal(together.sort().values, torch.arange(n))
    assert torch.equal(found.suspect.predict(found.clean.images), found.clean.predictions)


def test_the_records_say_what_was_read(checkpoint: Path, data: Path) -> None:
    found = opened(checkpoint, data)
    content = checkpoint.read_bytes()
    assert found.suspect_record.path == str(checkpoint)
    assert found.suspect_record.sha256 == hashlib.sha256(content).hexdigest()
    assert found.suspect_record.size == len(content)
    assert found.suspect_record.architecture.startswith("cifar_resnet18 (depth 18, width 4")
    assert found.suspect_record.hints == ()
    assert found.load_record.method == "weights read by the symbolic unpickler"
    assert found.load_record.state_dict_key == "state_dict"
    assert found.clean_record.path == str(data)
    assert (found.clean_record.images, found.clean_record.available) == (32, 32)
    assert found.clean_record.classes == len(FOLDERS)
    assert found.clean_record.preprocessing == {
        "id": "half",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    assert found.clean_record.accuracy is not None
    assert found.clean_record.accuracy >= 0.5


def test_a_safetensors_file_is_told_apart(net: nn.Module, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path)
    found = opened(path, data)
    assert found.load_record.method == "safetensors"
    assert found.suspect_record.format == "safetensors"


def test_a_pickled_module_gives_its_class_names_as_hints(
    net: nn.Module, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "module.pt"
    torch.save(net, path)
    hints = opened(path, data).suspect_record.hints
    assert "modelaudit.architectures.cifar_resnet.CifarResNet" in hints
    assert list(hints) == sorted(set(hints))


def test_the_architecture_may_be_named(checkpoint: Path, data: Path) -> None:
    found = opened(checkpoint, data, arch="cifar_resnet18")
    assert found.suspect_record.architecture.startswith("cifar_resnet18 ")


def test_the_architecture_may_be_the_users_own_file(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    source = tmp_path / "mine.py"
    source.write_text(FACTORY)
    found = opened(checkpoint, data, arch=f"{source}:build")
    assert found.suspect_record.architecture == f"{source}:build"
    assert "architecture made by the user's own file" in found.notes


@pytest.mark.parametrize("arch", ["mine.py", "no/such/mine.py:build"])
def test_a_user_file_that_cannot_be_used_is_a_usage_error(
    checkpoint: Path, data: Path, arch: str
) -> None:
    with pytest.raises(ConfigError, match=r"--arch expects path/to/file\.py:factory"):
        opened(checkpoint, data, arch=arch)


def test_an_unknown_architecture_names_the_closest(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    torch.save({"alpha.weight": torch.zeros(3, 2, 2), "beta.bias": torch.zeros(7)}, path)
    with pytest.raises(UnknownArchitectureError):
        opened(path, data)


def test_a_missing_checkpoint_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match="no such file"):
        opened(tmp_path / "missing.pt", data)


def test_a_missing_folder_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        opened(checkpoint, tmp_path / "missing")


def test_a_class_file_gives_the_order_of_the_outputs(checkpoint: Path, tmp_path: Path) -> None:
    data = write_folders(
        tmp_path / "named", ("dog", "cat", "bee", "ant"), per_folder=PER_FOLDER, size=SIDE
    )
    classes = tmp_path / "classes.txt"
    classes.write_text("dog\n\n cat \nbee\nant\n", encoding="utf-8")
    found = opened(checkpoint, data, classes=classes)
    assert found.clean_record.class_names == ("dog", "cat", "bee", "ant")
    assert found.is_fit


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00caf\xe9"])
def test_a_class_file_that_cannot_be_read_is_named(
    checkpoint: Path, data: Path, tmp_path: Path, content: bytes | None
) -> None:
    classes = tmp_path / "classes.txt"
    if content is not None:
        classes.write_bytes(content)
    with pytest.raises(DataError, match=r"classes.txt: expected a text file with one class folder"):
        opened(checkpoint, data, classes=classes)


def test_a_suspect_training_set_is_read_beside_the_clean_images(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    mixture = write_folders(tmp_path / "mixture", FOLDERS, per_folder=3, size=SIDE)
    found = opened(checkpoint, data, mixture=mixture)
    assert found.clean.mixture is not None
    assert found.clean.mixture.shape == (12, 3, SIDE, SIDE)


def test_images_without_labels_are_labelled_by_the_suspect(
    checkpoint: Path, tmp_path: Path
) -> None:
    for label in range(len(FOLDERS)):
        for index in range(PER_FOLDER):
            content = encoded(picture(label, index, size=SIDE))
            (tmp_path / f"{label}_{index}.png").write_bytes(content)
    found = opened(checkpoint, tmp_path)
    assert not found.clean.has_labels
    assert torch.equal(found.clean.labels, found.clean.predictions)
    assert found.clean_record.accuracy is None
    assert found.clean_record.classes is None
    assert found.obstacles == ("a verdict needs at least 100 clean images, got 32",)


def test_few_images_are_an_obstacle_told_in_numbers(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    assert opened(checkpoint, data).obstacles == (
        "a verdict needs at least 100 clean images, got 32",
    )
    few = write_data(tmp_path / "few", 4)
    assert "a verdict needs at least 5 clean images of each class, one has 4" in (
        opened(checkpoint, few).obstacles
    )


def _instead_of_fit(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    real = intake.fitting.fit

    def fit(*arguments: Any, **options: Any) -> Fit:
        return replace(real(*arguments, **options), **changes)

    monkeypatch.setattr(intake.fitting, "fit", fit)


@pytest.mark.parametrize(
    ("stray", "is_said"), [(0, True), (2, True), (3, False)], ids=["grey", "rounded", "colour"]
)
def test_grey_images_for_a_model_of_colours_are_said(
    checkpoint: Path, tmp_path: Path, *, stray: int, is_said: bool
) -> None:
    images = np.random.default_rng(3).integers(0, 250, (32, SIDE, SIDE, 1)).repeat(3, 3)
    # Every grey is off by `stray` steps somewhere: in floating point the step differs.
    greys = np.arange(250)
    images.reshape(-1, 3)[greys] = greys[:, None]
    images.reshape(-1, 3)[greys, 1] += stray
    labels = np.arange(32) % len(FOLDERS)
    np.savez(tmp_path / "grey.npz", images=images.astype(np.uint8), labels=labels)
    notes = opened(checkpoint, tmp_path / "grey.npz").notes
    assert any("every clean image is grey" in note for note in notes) is is_said


def test_an_open_preprocessing_rules_out_clean(
    checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened(checkpoint, data).obstacles_to_clean == ()
    _instead_of_fit(monkeypatch, preprocessing_is_certain=False)
    (obstacle,) = opened(checkpoint, data).obstacles_to_clean
    assert obstacle.reason_code == "MA-V507"
    assert obstacle.reason.endswith("from unlabelled images")
    assert obstacle.next_step.startswith("give --preprocess, or --mean and --std")


@pytest.mark.parametrize(("accuracy", "shown"), [(0.3125, "31.2%"), (None, "unknown")])
def test_an_accuracy_under_the_gate_is_an_obstacle(
    checkpoint: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    accuracy: float | None,
    shown: str,
) -> None:
    _instead_of_fit(monkeypatch, passes_gate=False, accuracy=accuracy)
    found = opened(checkpoint, data)
    assert not found.is_fit
    assert found.obstacles[-1].startswith(
        f"clean accuracy is {shown}, its lower bound has to reach 40.0% "
    )


def test_no_way_to_run_the_model_is_blamed_on_the_number_of_images_where_they_are_few(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise FitError("two architectures fit")

    monkeypatch.setattr(intake.fitting, "fit", fail)
    with pytest.raises(TooFewImagesError, match="at least 100 clean images, got 32") as caught:
        opened(checkpoint, data)
    assert isinstance(caught.value.__cause__, FitError)
    many = write_folders(tmp_path / "many", FOLDERS, per_folder=25, size=8)
    with pytest.raises(FitError, match="two architectures fit"):
        opened(checkpoint, many)


def test_a_stopwatch_books_the_time_since_the_last_lap(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 11.0, 14.5])
    monkeypatch.setattr("modelaudit.engine.intake.time.perf_counter", lambda: next(ticks))
    watch = Stopwatch(_since=10.0)
    next(ticks)
    watch.lap("first")
    watch.lap("second")
    assert watch.seconds == {"first": 1.0, "second": 3.5}
