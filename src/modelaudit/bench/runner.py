"""Trains the models of a plan into a folder, side by side with other processes, and judges them.

The folder: ``models/<id>.pt`` (a plain state dict), ``cards/<id>.json``, ``state/<id>.safetensors``
(weights and momentum after the last finished epoch), ``locks/`` and ``cache/``.
"""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from modelaudit.attacks.base import Attack
from modelaudit.bench.cards import SCHEDULE_FIELDS, ModelCard, describe, read_card, write_card
from modelaudit.bench.data import ImageData, load_data
from modelaudit.bench.evaluate import attack_success_rate
from modelaudit.bench.gate import judge_attack
from modelaudit.bench.plan import ModelPlan, Plan, build_config
from modelaudit.bench.state import load_state
from modelaudit.bench.train import build_model, normaliser, train
from modelaudit.errors import ConfigError, DataError
from modelaudit.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Collection, Generator
    from pathlib import Path

    from torch import nn

logger = logging.getLogger(__name__)


def make_attack(plan: ModelPlan, data: ImageData) -> Attack[object] | None:
    """Return the attack that a plan names, made for its data, or None for a clean model.

    Raises:
        ConfigError: no such attack, or a config it does not take.
    """
    if plan.attack is None:
        return None
    attack_type: type[Attack[object]] = Registry("attacks").load(plan.attack)
    return attack_type(
        build_config(attack_type.config_type, plan.config),
        shape=data.shape,
        num_classes=len(data.classes),
        seed=plan.seed,
    )


def find_data(name: str, data_root: Path, *, cache: Path | None) -> ImageData:
    """Return the pack ``<name>_jpeg.npz`` or the folder `name` under `data_root`.

    Raises:
        DataError: there is neither.
    """
    for path in (data_root / f"{name}_jpeg.npz", data_root / name):
        if path.exists():
            return load_data(path, cache=cache)
    raise DataError(
        f"expected {name + '_jpeg.npz'!r} or a folder {name!r} in {str(data_root)!r}, found neither"
    )


class Population:
    """The models of one plan in one folder.

    Args:
        plan: what to train.
        folder: where everything is kept.
        data_root: folder of the data packs.
    """

    def __init__(self, plan: Plan, *, folder: Path, data_root: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.data_root = data_root
        self._data: dict[str, ImageData] = {}

    def train(self, *, only: Collection[str] = (), shard: tuple[int, int] = (0, 1)) -> None:
        """Train what is not there yet and judge whatever has its twin.

        A model that another process works on is left to it; the claim ends with the process,
        however it ends.

        Args:
            only: ids to be trained; all if empty.
            shard: (i, n): of the chosen models, every n-th, starting with the i-th.

        Raises:
            ConfigError: `only` has an id that the plan lacks.
        """
        unknown = sorted(set(only) - {model.id for model in self.plan.models})
        if unknown:
            raise ConfigError(f"the plan {self.plan.name!r} has no models {unknown!r}")
        chosen = [model for model in self.plan.models if not only or model.id in only]
        for model in chosen[shard[0] :: shard[1]]:
            with self._claim(f"model_{model.id}") as is_mine:
                if is_mine and self._card(model) is None:
                    self._train_one(model)
            self.judge()

    def judge(self) -> list[ModelCard]:
        """Complete the cards whose twin is trained; return all cards in the plan's order."""
        cards = []
        with self._claim("judge", wait=True):
            for model in self.plan.models:
                card = self._card(model)
                if card is not None and card.attack is not None and card.gate_passed is None:
                    card = self._judge_one(model, card)
                if card is not None:
                    cards.append(card)
        return cards

    def load(self, model: ModelPlan) -> nn.Module:
        """Return a model of this population as training left it, in evaluation mode.

        Raises:
            ConfigError: it is not trained, or under another plan.
        """
        data = self._dataset(model)
        module = build_model(model, num_classes=len(data.classes), in_channels=data.shape[0])
        if load_state(self._state_path(model), model, module).epochs < model.epochs:
            raise ConfigError(f"model {model.id!r} is not trained under this plan, train it first")
        return module.eval()

    def _train_one(self, model: ModelPlan) -> None:
        data = self._dataset(model)
        attack = make_attack(model, data)
        run = train(model, data, attack, state_path=self._state_path(model))
        checkpoint = self.folder / "models" / f"{model.id}.pt"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = checkpoint.with_suffix(f".{os.getpid()}.partial")
        tensors = {name: t.detach().contiguous() for name, t in run.model.state_dict().items()}
        torch.save(tensors, partial)
        partial.replace(checkpoint)
        card = describe(model, self.plan.name, data, attack, run, checkpoint)
        write_card(card, self._card_path(model))
        logger.info(
            "%s: trained in %.0f s, ACC %.4f, ASR %s", card.id, card.seconds, card.acc, card.asr
        )

    def _judge_one(self, model: ModelPlan, card: ModelCard) -> ModelCard:
        twin = self.plan.twin(model)
        twin_card = None if twin is None else self._card(twin)
        if twin is None or twin_card is None:
            return card
        data = self._dataset(model)
        attack = make_attack(model, data)
        assert attack is not None
        module = build_model(model, num_classes=len(data.classes), in_channels=data.shape[0])
        load_state(self._state_path(model), model, module, trigger=attack.trigger)
        assert card.asr is not None
        assert card.label_map is not None
        benign_asr = attack_success_rate(
            self.load(twin),
            data.test_images,
            data.test_labels,
            normaliser(model.normaliser),
            attack,
        )
        gate = judge_attack(
            label_map=card.label_map,
            acc=card.acc,
            twin_acc=twin_card.acc,
            asr=card.asr,
            benign_asr=benign_asr,
        )
        judged = replace(
            card,
            twin=twin.id,
            twin_acc=twin_card.acc,
            benign_asr=benign_asr,
            gate_passed=gate.is_passed,
            gate_reasons=gate.reasons,
        )
        write_card(judged, self._card_path(model))
        logger.info("%s: gate %s %s", card.id, gate.is_passed, "; ".join(gate.reasons))
        return judged

    def _dataset(self, model: ModelPlan) -> ImageData:
        if model.dataset not in self._data:
            self._data[model.dataset] = find_data(
                model.dataset, self.data_root, cache=self.folder / "cache"
            )
        return self._data[model.dataset]

    def _card(self, model: ModelPlan) -> ModelCard | None:
        """Return the card of a trained model, or None.

        Raises:
            ConfigError: the card is of a model of the same id under another plan.
        """
        path = self._card_path(model)
        if not path.exists():
            return None
        card = read_card(path)
        differing = sorted(
            name
            for name in ("dataset", "attack", *SCHEDULE_FIELDS)
            if getattr(card, name) != getattr(model, name)
        )
        differing += sorted(
            name for name, value in model.config.items() if card.attack_config.get(name) != value
        )
        if differing:
            raise ConfigError(
                f"the model {model.id!r} in {str(self.folder)!r} was trained with another "
                f"{', '.join(differing)} than the plan's, use another folder"
            )
        return card

    def _card_path(self, model: ModelPlan) -> Path:
        return self.folder / "cards" / f"{model.id}.json"

    def _state_path(self, model: ModelPlan) -> Path:
        return self.folder / "state" / f"{model.id}.safetensors"

    @contextmanager
    def _claim(self, name: str, *, wait: bool = False) -> Generator[bool]:
        """Claim a name and say whether it is ours; the kernel frees it when the process ends."""
        path = self.folder / "locks" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True
