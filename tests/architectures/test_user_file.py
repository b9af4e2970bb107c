from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from modelaudit.architectures import from_file, load
from modelaudit.errors import ConfigError, UnknownArchitectureError
from modelaudit.weights import Weights
from tests.helpers.architectures import images, logits, seeded, weights_of

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
    from __future__ import annotations
    from dataclasses import dataclass
    import torch
    from torch import nn

    @dataclass
    class Options:
        width: int = 4

    class Net(nn.Module):
        def __init__(self, num_classes=2, stride=1, in_channels=3):
            super().__init__()
            width = Options().width
            self.mean = torch.tensor(0.25)
            self.conv = nn.Conv2d(in_channels, width, 3, stride=stride)
            self.head = nn.Linear(width, num_classes)

        def forward(self, x):
            return self.head(self.conv(x - self.mean).relu().mean((2, 3)))

    def plain():
        return Net(num_classes=5)

    def strided(num_classes):
        return Net(num_classes, stride=2)

    def grey():
        return Net(5, in_channels=1)

    def flat():
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))

    def odd():
        return nn.Sequential(nn.Flatten(), nn.Linear(17, 5))

    def normalised():
        return nn.Sequential(nn.BatchNorm2d(3))

    def convolutional():
        return nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    class Outer(nn.Module):
        def __init__(self, num_classes=5):
            super().__init__()
            self.model = nn.Module()
            self.model.net = Net(num_classes)

        def forward(self, x):
            return self.model.net(x)

    def fails():
        raise OSError("no such luck")

    def text():
        return "a network"

    builtin = len
    number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(textwrap.dedent(SOURCE))
    return path


def _made(file: Path, factory: str) -> nn.Module:
    """Return the factory's module, built by a from_file that is given a lenient file."""
    namespace: dict[str, object] = {"__name__": __name__}
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    make = namespace[factory]
    assert callable(make)
    module = make(5) if factory == "strided" else make()
    assert isinstance(module, nn.Module)
    return module


@pytest.mark.parametrize(
    ("factory", "channels", "size"),
    [("plain", 3, 32), ("strided", 3, 224), ("grey", 1, 28), ("flat", 3, 16)],
)
def test_a_named_factory_is_a_candidate_that_computes_the_same(
    file: Path, factory: str, channels: int, size: int
) -> None:
    module = seeded(lambda: _made(file, factory))
    weights = weights_of(module)
    candidate = from_file(f"{file}:{factory}")(weights)
    assert candidate.name == f"{file}:{factory}"
    assert candidate.input_channels == channels
    assert candidate.input_sizes[0] == size
    assert candidate.num_classes == 5
    batch = images((2, channels, 16, 16))
    torch.testing.assert_close(logits(load(candidate, weights), batch), logits(module, batch))


@pytest.mark.parametrize(("factory", "classes"), [("odd", 5), ("convolutional", 5)])
def test_unusual_networks_get_an_input_and_a_class_count(
    file: Path, factory: str, classes: int
) -> None:
    candidate = from_file(f"{file}:{factory}")(weights_of(_made(file, factory)))
    assert candidate.num_classes == classes
    assert candidate.input_channels == 3


def test_a_class_is_a_factory_and_is_told_the_class_count_of_the_file(file: Path) -> None:
    module = seeded(lambda: _made(file, "plain"))
    candidate = from_file(f"{file}:Net")(weights_of(module))
    assert candidate.num_classes == 5


@pytest.mark.parametrize("stripped", ["", "model.", "model.net."])
def test_a_prefix_that_the_reader_took_off_is_given_back(file: Path, stripped: str) -> None:
    module = seeded(lambda: _made(file, "Outer"))
    state = {key.removeprefix(stripped): value for key, value in module.state_dict().items()}
    weights = Weights(tensors=state)
    candidate = from_file(f"{file}:Outer")(weights)
    batch = images((2, 3, 16, 16))
    torch.testing.assert_close(logits(load(candidate, weights), batch), logits(module, batch))
    with pytest.raises(UnknownArchitectureError, match=r"'model\.net\.conv\.weight' expected"):
        from_file(f"{file}:Outer")(Weights(tensors={"other": torch.zeros(2)}))


def test_the_factory_is_checked_as_strictly_as_any_family(file: Path) -> None:
    weights = weights_of(_made(file, "plain"))
    surplus = Weights(tensors={**weights.tensors, "extra": torch.zeros(2)})
    with pytest.raises(UnknownArchitectureError, match="'extra' expected nothing") as caught:
        from_file(f"{file}:plain")(surplus)
    assert caught.value.closest
    with pytest.raises(UnknownArchitectureError, match=r"'conv\.weight' expected"):
        from_file(f"{file}:grey")(weights)


def test_a_module_without_convolution_or_linear_layer_is_checked_all_the_same(file: Path) -> None:
    candidate = from_file(f"{file}:normalised")(weights_of(nn.Sequential(nn.BatchNorm2d(3))))
    assert candidate.num_classes == 1


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nets.py", "add the factory's name after a colon"),
        ("nets.py:", "add the factory's name after a colon"),
        (":plain", "add the factory's name after a colon"),
        ("{folder}/missing.py:plain", "found no file"),
        ("{folder}:plain", "found no file"),
        ("{folder}/notes.txt:plain", "which is no Python file"),
        ("{folder}/nets.py:nothing", "has no attribute 'nothing'"),
        ("{folder}/nets.py:number", "is a int, not callable"),
        ("{folder}/broken.py:plain", "raised SyntaxError"),
        ("{folder}/raising.py:plain", "raised ZeroDivisionError"),
    ],
)
def test_a_text_that_names_no_factory_is_a_usage_error(file: Path, spec: str, said: str) -> None:
    (file.parent / "notes.txt").write_text("not Python")
    (file.parent / "broken.py").write_text("def")
    (file.parent / "raising.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match=said):
        from_file(spec.format(folder=file.parent))


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("fails", r"raised OSError: no such luck"),
        ("text", r"returned a str, expected a torch\.nn\.Module"),
        ("builtin", "raised TypeError"),
    ],
)
def test_a_factory_that_fails_is_a_usage_error(file: Path, factory: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_file(f"{file}:{factory}")(weights_of(nn.Linear(2, 2)))


def test_nothing_is_written_beside_the_users_file(file: Path) -> None:
    from_file(f"{file}:plain")
    assert [path.name for path in file.parent.iterdir()] == ["nets.py"]


def test_a_callable_without_a_signature_takes_no_class_count(tmp_path: Path) -> None:
    path = tmp_path / "odd.py"
    path.write_text("factory = type\n")
    with pytest.raises(ConfigError, match="raised TypeError"):
        from_file(f"{path}:factory")(weights_of(nn.Linear(2, 2)))
