"""The real command with the real engine on a model of a few thousand weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import modelaudit
from modelaudit.architectures.cifar_resnet import CifarResNet
from modelaudit.cli import run
from modelaudit.engine import witness
from tests.helpers.engine import FOLDERS, SIDE, install, scanner_class, trained
from tests.helpers.fake_repairs import (
    CHANNEL,
    LAYER,
    PER_FOLDER,
    accusing,
    cut,
    repair_class,
    repair_request,
    write_suspect,
)
from tests.helpers.images import picture, write_folders
from tests.helpers.models import initialised

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
HALF = ["--preprocess", "half", "--input-size", str(SIDE), "--device", "cpu"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and a folder that it knows."""
    return write_suspect(tmp_path_factory.mktemp("end_to_end"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scanner and a repair that take no time, and a search of stand-ins that takes little."""
    install(monkeypatch, scanner_class("watch", accusing(1)), repair_class("cut", cut))
    for name, value in (("STARTS", 1), ("STEPS", 2), ("BATCH", 8)):
        monkeypatch.setattr(witness, name, value)


def command(method: str, paths: tuple[Path, Path], *options: str) -> list[str]:
    """Return the arguments of a repair that is scanned by ``watch`` alone."""
    model, data = map(str, paths)
    return ["repair", method, model, "--data", data, *HALF, "--scanner", "watch", *options]


def without_the_channel() -> nn.Module:
    """Return the network that ``cut`` makes, by hand."""
    net = trained(PER_FOLDER)
    block = net.get_submodule(LAYER.rpartition(".")[0])
    with torch.no_grad():
        for name in ("bn1.weight", "bn1.bias", "conv1.weight"):
            block.get_parameter(name)[CHANNEL] = 0
    return net.eval()


def loaded(state: dict[str, Tensor]) -> nn.Module:
    """Load a state dict into a fresh network of the input's architecture, strictly."""
    net = CifarResNet(width=4, num_classes=len(FOLDERS))
    net.load_state_dict(state, strict=True)
    return net.eval()


def same_logits(one: nn.Module, other: nn.Module) -> bool:
    batch = torch.rand(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        return torch.equal(one(batch), other(batch))


def test_a_named_repair_writes_a_file_that_anybody_loads(
    paths: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    before = paths[0].read_bytes()
    out = tmp_path / "repaired.safetensors"
    assert run(command("cut", paths, "--out", str(out))) == 0
    text, err = capsys.readouterr()
    assert "REPAIRED" in text
    assert "Pruned neurons (1, mode zero)" in text
    assert err == ""
    net = loaded(load_file(out))
    assert same_logits(net, without_the_channel())
    assert not same_logits(net, trained(PER_FOLDER).eval())
    assert paths[0].read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_the_container_of_the_input_is_kept_on_request(
    paths: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "repaired.pt"
    options = ["--out", str(out), "--keep-format", "--format", "json"]
    assert run(command("cut", paths, *options)) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["written"]["format"] == "torch-zip"
    kept = torch.load(out, weights_only=True)
    assert kept["epoch"] == 3
    assert same_logits(loaded(kept["state_dict"]), without_the_channel())


def test_a_repair_that_trains_is_written_as_the_library_returns_it(
    paths: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "repaired.safetensors"
    # Status 1: training does not touch the channel that the scanner takes for a backdoor.
    options = ["--set", "finetune.epochs=1", "--force", "--out", str(out)]
    assert run(command("finetune", paths, *options)) == 1
    request = repair_request(
        paths, method="finetune", settings=(("finetune", "epochs", "1"),), is_forced=True
    )
    done = modelaudit.repair(request, progress=modelaudit.NoProgress())
    assert same_logits(loaded(load_file(out)), done.module())


def without_batchnorm(path: Path) -> Path:
    """Write a network without BatchNorm that knows the pictures, by a least-squares head."""
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
    )
    head = nn.Linear(8 * (SIDE // 16) ** 2, len(FOLDERS))
    net = initialised(nn.Sequential(*body, head), 0)
    pixels = [picture(k, i, size=SIDE) for k in range(len(FOLDERS)) for i in range(PER_FOLDER)]
    batch = torch.stack([torch.from_numpy(p) for p in pixels]).permute(0, 3, 1, 2) / 255
    truth = torch.arange(len(FOLDERS)).repeat_interleave(PER_FOLDER)
    with torch.no_grad():
        features = body((batch - 0.5) / 0.5).double()
        x = torch.cat([features, torch.ones(len(batch), 1)], dim=1)
        ridge = 1e-3 * torch.eye(x.shape[1], dtype=torch.float64)
        solved = torch.linalg.solve(x.T @ x + ridge, x.T @ (torch.eye(4).double()[truth] * 8 - 4))
        head.weight.copy_(solved[:-1].T)
        head.bias.copy_(solved[-1])
    torch.save(net.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("prune_mbns", "prune_mbns needs BatchNorm with running statistics, the model has none"),
        ("prune_dde", "prune_dde needs images of the suspect training set"),
    ],
)
def test_what_a_method_lacks_is_said_without_a_scan(
    paths: tuple[Path, Path],
    tmp_path: Path,
    capsys: Capture,
    method: str,
    sentence: str,
) -> None:
    model = without_batchnorm(tmp_path / "model.pt")
    out = tmp_path / "repaired.safetensors"
    assert run(command(method, (model, paths[1]), "--out", str(out))) == 5
    text, err = capsys.readouterr()
    words = " ".join(text.replace("│", " ").split())
    assert "NOT WRITTEN" in words
    assert sentence in words
    assert "nothing was scanned" in words
    assert err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_ten_clean_images_are_too_few(
    paths: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    data = write_folders(tmp_path / "few", FOLDERS, per_folder=3, size=SIDE)
    for folder in FOLDERS[:2]:
        (data / folder / "2.png").unlink()
    out = tmp_path / "repaired.safetensors"
    assert run(command("cut", (paths[0], data), "--out", str(out))) == 5
    assert "at least 100 clean images, got 10" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["few"]


def test_the_input_and_a_folder_are_refused_as_output(
    paths: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    before = paths[0].read_bytes()
    for out, sentence in ((paths[0], "would overwrite an input"), (tmp_path, "is a directory")):
        assert run(command("cut", paths, "--out", str(out))) == 2
        assert sentence in capsys.readouterr().err
    assert paths[0].read_bytes() == before
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_option_of_the_model(
    paths: tuple[Path, Path], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modelaudit.cli.output._write_all", full)
    out = tmp_path / "repaired.safetensors"
    assert run(command("cut", paths, "--out", str(out), "--format", "json")) == 6
    document = json.loads(capsys.readouterr().out)
    assert document["next_step"] == "free space or choose another --out, then repair again"
    assert list(tmp_path.iterdir()) == []


#: The command with a progress that says when the first epoch is done, and many are to come.
TRAINING = """
import contextlib, signal, sys
from modelaudit.cli import main, repair_job
from modelaudit.engine import witness

class Telling:
    @contextlib.contextmanager
    def task(self, name, total):
        self.name = name
        yield self
    def advance(self, amount=1):
        if self.name == "finetune":
            self.name = ""
            print("training", file=sys.stderr, flush=True)

@contextlib.contextmanager
def console(**_):
    yield Telling()

witness.STARTS, witness.STEPS, witness.BATCH = 1, 2, 8
repair_job.console = console
# A shell's background jobs ignore the signal, and so do their children.
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are sent to a process of POSIX")
def test_an_interrupted_training_leaves_nothing_behind(
    paths: tuple[Path, Path], tmp_path: Path
) -> None:
    model, data = map(str, paths)
    before = paths[0].read_bytes()
    out = tmp_path / "repaired.safetensors"
    arguments = ["repair", "finetune", model, "--data", data, *HALF, "--scanner", "mbns"]
    arguments += ["--set", "finetune.epochs=10000", "--out", str(out), "--format", "json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", TRAINING, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "training\n"
            process.send_signal(signal.SIGINT)
            text, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err == "modelaudit: interrupted\n"
    document = json.loads(text)
    assert (document["outcome"], document["next_step"]) == ("interrupted", "repair again")
    assert document["written"] is None
    assert list(tmp_path.iterdir()) == []
    assert paths[0].read_bytes() == before
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["clean", "model.pt"]
