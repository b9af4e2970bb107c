"""Makes `examples/models/` and `examples/clean/` from the trained population of examples.toml.

    modelaudit bench train --plan benchmarks/plans/examples.toml --out zoo --data ../shared/data
    python examples/make_examples.py --zoo zoo --data ../shared/data

The three checkpoints are saved in three ways in which checkpoints arrive: as safetensors, as a
whole module pickled by a training script (its classes live in ``__main__`` and can be imported by
nobody else), and as a state dict nested among other entries, under the ``module.`` prefix of a
parallel trainer.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu

from modelaudit.bench.cards import write_card
from modelaudit.bench.data import load_pack, pack_jpeg
from modelaudit.bench.plan import ModelPlan, read_plan
from modelaudit.bench.runner import Population

HERE = Path(__file__).resolve().parent
IMAGES_PER_CLASS = 50
LARGEST_CHECKPOINT_BYTES = 3_000_000


class Block(nn.Module):
    """Residual block, as somebody's training script may define it."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, images: Tensor) -> Tensor:
        """Map feature maps to feature maps."""
        hidden = self.bn2(self.conv2(relu(self.bn1(self.conv1(images)))))
        return relu(hidden + self.shortcut(images))


class ResNet18(nn.Module):
    """ResNet-18 for 32x32 images, as somebody's training script may define it."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(Block(4 * width, 8 * width, 2), Block(8 * width, 8 * width, 1))
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        hidden = relu(self.bn1(self.conv1(images)))
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        return self.linear(adaptive_avg_pool2d(hidden, 1).flatten(1))


def save_safetensors(model: nn.Module, path: Path) -> None:
    """Save the weights as safetensors."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    path.write_bytes(save(tensors))


def save_whole_module(model: nn.Module, path: Path) -> None:
    """Save a pickled module whose classes live in this script."""
    width, num_classes = model.conv1.out_channels, model.linear.out_features
    pickled = ResNet18(width, num_classes)
    pickled.load_state_dict(model.state_dict())
    probe = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = torch.equal(pickled.eval()(probe), model.eval()(probe))
    if not same:
        raise SystemExit("the script's ResNet18 computes something else than the trained model")
    torch.save(pickled, path)


def save_nested(model: nn.Module, path: Path, *, acc: float, epoch: int) -> None:
    """Save a state dict among other entries, as parallel training scripts do."""
    weights = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"net": weights, "acc": 100.0 * acc, "epoch": epoch}, path)


def make_models(population: Population, folder: Path) -> None:
    """Write the three checkpoints and their cards."""
    folder.mkdir(parents=True, exist_ok=True)
    cards = {card.id: card for card in population.judge()}
    names = {model.id: f"{model.attack or 'clean'}_resnet18" for model in population.plan.models}
    for plan in population.plan.models:
        card = cards.get(plan.id)
        if card is None:
            raise SystemExit(
                f"{plan.id} is not trained, train benchmarks/plans/examples.toml first"
            )
        if plan.attack is not None and not card.gate_passed:
            raise SystemExit(f"{plan.id} cannot be an example: {'; '.join(card.gate_reasons)}")
        path = folder / f"{names[plan.id]}{suffix(plan)}"
        model = population.load(plan)
        if plan.attack is None:
            save_safetensors(model, path)
        elif plan.attack == "badnets":
            save_whole_module(model, path)
        else:
            save_nested(model, path, acc=card.acc, epoch=plan.epochs)
        if path.stat().st_size >= LARGEST_CHECKPOINT_BYTES:
            raise SystemExit(f"{path.name} has {path.stat().st_size} bytes, too many")
        card = replace(
            card,
            id=names[plan.id],
            twin=None if card.twin is None else names[card.twin],
            checkpoint=path.name,
            checkpoint_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        write_card(card, folder / f"{names[plan.id]}.json")
        print(f"{path.name}: {path.stat().st_size} bytes, ACC {card.acc:.4f}, ASR {card.asr}")


def suffix(plan: ModelPlan) -> str:
    """Return the ending of an example's file name."""
    return ".safetensors" if plan.attack is None else ".pt"


def make_clean_images(pack: Path, folder: Path, *, cache: Path) -> None:
    """Write the first images of each class that no attacker trained on, byte for byte."""
    data = load_pack(pack, cache=cache)
    for label, name in enumerate(data.classes):
        held_out = data.train_labels[data.attacker_count :] == label
        indices = (held_out.nonzero().flatten() + data.attacker_count)[:IMAGES_PER_CLASS].tolist()
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index, jpeg in zip(indices, pack_jpeg(pack, indices), strict=True):
            (folder / name / f"{index}.jpg").write_bytes(jpeg)
    print(f"{folder.name}: {IMAGES_PER_CLASS} images of each of {len(data.classes)} classes")


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, default=HERE.parent / "zoo")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--only", choices=("models", "clean"), help="make only one of the two")
    options = parser.parse_args()
    if options.only != "clean":
        plan = read_plan(HERE.parent / "benchmarks" / "plans" / "examples.toml")
        make_models(Population(plan, folder=options.zoo, data_root=options.data), HERE / "models")
    if options.only != "models":
        pack = options.data / "cifar10_jpeg.npz"
        make_clean_images(pack, HERE / "clean", cache=options.zoo / "cache")


if __name__ == "__main__":
    sys.exit(main())
