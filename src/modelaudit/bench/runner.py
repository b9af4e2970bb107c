"""Trains the models of a plan into a folder, side by side with other processes, and judges them.

The folder: ``models/<id>.pt`` (a plain state dict), ``cards/<id>.json``, ``state/<id>.safetensors``
(weights, optimisers and trigger after the last finished epoch), ``failed/<id>.json``, ``locks/``
and ``cache/``.
"""

from __future__ import annotations

import io
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from modelaudit import checkpoint as checkpoints
from modelaudit.attacks.classifier import Classifier
from modelaudit.bench.attacked import make_attack, trained_attack
from modelaudit.bench.cards import ModelCard, checkpoint_of, describe, read_card, write_card
from modelaudit.bench.claims import claim
from modelaudit.bench.data import ImageData, data_path, load_data
from modelaudit.bench.evaluate import attack_success_rate
from modelaudit.bench.events import Event
from modelaudit.bench.failures import forget_failure, has_failed, record_failure
from modelaudit.bench.files import remove_partials, write_whole
from modelaudit.bench.gate import judge_attack
from modelaudit.bench.matching import differences
from modelaudit.bench.train import build_model, normalise, normaliser, train
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from torch import Tensor, nn

    from modelaudit.attacks.base import Attack
    from modelaudit.bench.plan import ModelPlan, Plan

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")


def find_data(
    name: str, data_root: Path, *, cache: Path | None, size: int | None = None
) -> ImageData:
    """Return the pack ``<name>_jpeg.npz`` or the folder `name` under `data_root`.

    Args:
        name: of the data.
        data_root: where it lies.
        cache: see `load_data`.
        size: side in pixels to which a folder's images are resized; 32 if None.

    Raises:
        DataError: there is neither.
    """
    return load_data(data_path(name, data_root), cache=cache, size=32 if size is None else size)


class Population:
    """The models of one plan in one folder.

    Args:
        plan: what to train.
        folder: where everything is kept.
        data_root: folder of the data packs.
        device: where to train and to measure.
        report: told of every event.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        folder: Path,
        data_root: Path,
        device: torch.device = CPU,
        report: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.data_root = data_root
        self.device = device
        self.report = report
        self._data: dict[tuple[str, int | None], ImageData] = {}

    def choose(
        self,
        *,
        only: Collection[str] = (),
        population: str | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> tuple[ModelPlan, ...]:
        """Return the models of the plan that are asked for, in its order.

        Args:
            only: ids; all if empty.
            population: A or B; both if None.
            shard: (i, n): of these, every n-th, starting with the i-th.

        Raises:
            ConfigError: `only` has an id that the plan lacks.
        """
        unknown = sorted(set(only) - {model.id for model in self.plan.models})
        if unknown:
            raise ConfigError(f"the plan {self.plan.name!r} has no models {unknown!r}")
        chosen = [
            model
            for model in self.plan.models
            if (not only or model.id in only) and population in {None, model.population}
        ]
        return tuple(chosen[shard[0] :: shard[1]])

    def check(self, models: Collection[ModelPlan]) -> None:
        """Raise unless the data of the models is there and the folder is of this plan.

        Raises:
            ConfigError: the folder holds a model that was trained under another plan.
            DataError: data is missing.
        """
        for model in models:
            data_path(model.dataset, self.data_root)
            self.card(model)

    def train(
        self,
        *,
        only: Collection[str] = (),
        population: str | None = None,
        shard: tuple[int, int] = (0, 1),
        run: str = "",
    ) -> tuple[str, ...]:
        """Train what is not there yet and judge whatever has its twin.

        A model that another process works on is left to it; the claim ends with the process,
        however it ends. A model whose training raises is recorded as failed, and the next one is
        trained; it is tried again by the next run.

        Args:
            only: see `choose`.
            population: see `choose`.
            shard: see `choose`.
            run: names the run; what failed under the same name is not tried again.

        Returns:
            The ids of the models that failed.

        Raises:
            ConfigError: see `choose` and `check`.
            DataError: see `check`.
        """
        chosen = self.choose(only=only, population=population, shard=shard)
        self.check(chosen)
        failed = []
        for model in chosen:
            if not self._attempt(model, run, wait=False):
                failed.append(model.id)
            self.judge(run=run)
        return tuple(failed)

    def judge(self, *, run: str = "") -> list[ModelCard]:
        """Complete the cards whose twin is trained; return all cards in the plan's order.

        Args:
            run: see `train`.
        """
        cards = []
        with claim(self.folder, "judge", wait=True):
            for model in self.plan.models:
                card = self.card(model)
                if card is not None and card.population is None:
                    card = replace(card, population=model.population)
                    write_card(card, self._card_path(model))
                is_open = card is not None and card.attack is not None and card.gate_passed is None
                if card is not None and is_open and not has_failed(self.folder, model, run):
                    try:
                        card = self._judge_one(model, card)
                    except Exception as err:  # noqa: BLE001 - as in `_attempt`
                        self._fail(model, run, err)
                if card is not None:
                    cards.append(card)
        return cards

    def load(self, model: ModelPlan) -> nn.Module:
        """Return a model of this population as it was saved, on the CPU, in evaluation mode.

        Raises:
            ConfigError: it is not trained, or under another plan, or its file is not the one that
                its card names.
        """
        card = self._trained(model)
        data = self._dataset(model)
        module = build_model(model, num_classes=len(data.classes), in_channels=data.shape[0])
        path = checkpoint_of(card, self.folder)
        module.load_state_dict(dict(checkpoints.read_checkpoint(path).weights.tensors))
        return module.eval()

    def card(self, model: ModelPlan) -> ModelCard | None:
        """Return the card of a trained model, or None.

        Raises:
            ConfigError: the card is of a model of the same id under another plan.
        """
        path = self._card_path(model)
        if not path.exists():
            return None
        card = read_card(path)
        differing = differences(card, model)
        if differing:
            raise ConfigError(
                f"the model {model.id!r} in {str(self.folder)!r} was trained with another "
                f"{', '.join(differing)} than the plan's, use another folder"
            )
        return card

    def attack(self, model: ModelPlan) -> tuple[ImageData, Attack[object]]:
        """Return the data of a trained attacked model, and its attack with the learned trigger.

        Raises:
            ConfigError: the model is clean or not trained, or the trigger in the folder is not the
                one that its card names.
        """
        data = self._dataset(model)
        attack = trained_attack(self._trained(model), data, folder=self.folder)
        if attack is None:
            raise ConfigError(f"model {model.id!r} is clean, name an attacked one")
        return data, attack

    def _trained(self, model: ModelPlan) -> ModelCard:
        card = self.card(model)
        if card is None:
            raise ConfigError(f"model {model.id!r} is not trained under this plan, train it first")
        return card

    def _attempt(self, model: ModelPlan, run: str, *, wait: bool) -> bool:
        """Train a model unless it is there or another's; return whether nothing failed.

        Args:
            model: the model.
            run: see `train`.
            wait: wait for another process that trains it.
        """
        # what it needs comes first: whoever waits for a claim holds none that the other could need
        for id_ in (model.starts_from, model.surrogate):
            if id_ is not None and not self._attempt(self.plan.model(id_), run, wait=True):
                self._fail(model, run, ConfigError(f"model {id_!r}, which it needs, failed"))
                return False
        with claim(self.folder, f"model_{model.id}", wait=wait) as is_mine:
            if not is_mine or self.card(model) is not None:
                return True
            if has_failed(self.folder, model, run):
                return False
            for part in ("models", "cards", "state", "failed"):
                remove_partials(self.folder / part, model.id)
            try:
                card = self._train_one(model)
            except Exception as err:  # noqa: BLE001 - one bad model must not stop the others
                self._fail(model, run, err)
                return False
            forget_failure(self.folder, model)
        text = f"ACC {card.acc:.4f}" + ("" if card.asr is None else f", ASR {card.asr:.4f}")
        self.report(Event(kind="trained", id=model.id, epochs=model.epochs, text=text))
        return True

    def _train_one(self, model: ModelPlan) -> ModelCard:
        data = self._dataset(model)
        seen = data
        if model.limit is not None:
            seen = replace(data, attacker_count=min(model.limit, data.attacker_count))
        attack = make_attack(model, data)
        initial = None
        if model.starts_from is not None:
            initial = self.load(self.plan.model(model.starts_from)).state_dict()
        since = time.perf_counter()

        def after_epoch(done: int) -> None:
            nonlocal since
            now = time.perf_counter()
            self.report(Event(kind="epoch", id=model.id, epochs=done, seconds=now - since))
            since = now

        run = train(
            model,
            seen,
            attack,
            state_path=self._state_path(model),
            initial=initial,
            surrogate=self._surrogate(model),
            device=self.device,
            after_epoch=after_epoch,
        )
        path = self.folder / "models" / f"{model.id}.pt"
        tensors = {name: t.detach().contiguous() for name, t in run.model.state_dict().items()}
        # saved to memory, because a file's name would become part of the file
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        write_whole(path, buffer.getvalue())
        card = describe(model, self.plan.name, data, attack, run, path, device=self.device)
        write_card(card, self._card_path(model))
        logger.info(
            "%s: trained in %.0f s, ACC %.4f, ASR %s", card.id, card.seconds, card.acc, card.asr
        )
        return card

    def _surrogate(self, model: ModelPlan) -> Callable[[Tensor], Tensor] | None:
        if model.surrogate is None:
            return None
        plan = self.plan.model(model.surrogate)
        module = self.load(plan).requires_grad_(False).to(self.device)
        preprocessing = normaliser(plan.normaliser)
        return Classifier(module, normalise=lambda images: normalise(images, preprocessing))

    def _judge_one(self, model: ModelPlan, card: ModelCard) -> ModelCard:
        twin = self.plan.twin(model)
        twin_card = None if twin is None else self.card(twin)
        if twin is None or twin_card is None:
            return card
        data, attack = self.attack(model)
        assert card.asr is not None
        assert card.label_map is not None
        attack.to(self.device)
        benign_asr = attack_success_rate(
            self.load(twin).to(self.device),
            data.test_images.to(self.device),
            data.test_labels.to(self.device),
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
        said = "gate passed" if gate.is_passed else f"gate failed: {'; '.join(gate.reasons)}"
        self.report(Event(kind="judged", id=model.id, epochs=model.epochs, text=said))
        logger.info("%s: %s", card.id, said)
        return judged

    def _dataset(self, model: ModelPlan) -> ImageData:
        key = (model.dataset, model.image_size)
        if key not in self._data:
            self._data[key] = find_data(
                model.dataset,
                self.data_root,
                cache=self.folder / "cache",
                size=model.image_size,
            )
        return self._data[key]

    def _fail(self, model: ModelPlan, run: str, err: Exception) -> None:
        text = record_failure(self.folder, model, run, err)
        logger.warning("%s: failed: %s", model.id, text)
        self.report(Event(kind="failed", id=model.id, text=text))

    def _card_path(self, model: ModelPlan) -> Path:
        return self.folder / "cards" / f"{model.id}.json"

    def _state_path(self, model: ModelPlan) -> Path:
        return self.folder / "state" / f"{model.id}.safetensors"
