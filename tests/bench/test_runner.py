from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelaudit.bench.attacked import make_attack
from modelaudit.bench.cards import read_card, write_card
from modelaudit.bench.events import Event
from modelaudit.bench.matching import differences
from modelaudit.bench.plan import Plan, read_plan
from modelaudit.bench.runner import Population, find_data
from modelaudit.bench.train_work import TrainWork
from modelaudit.errors import ConfigError, DataError
from tests.helpers.attacks import tiny_data, tiny_plan, write_pack

if TYPE_CHECKING:
    from torch import Tensor

PLAN = """
name = "toy"
[defaults]
dataset = "toy"
width = 4
epochs = 1
batch_size = 16
seed = 1
[[model]]
id = "clean"
[[model]]
id = "attacked"
attack = "badnets"
config = { target = 2, rate = 0.3 }
"""


@pytest.fixture
def population(tmp_path: Path) -> Population:
    (tmp_path / "plan.toml").write_text(PLAN)
    write_pack(tmp_path / "toy_jpeg.npz")
    plan = read_plan(tmp_path / "plan.toml")
    return Population(plan, folder=tmp_path / "zoo", data_root=tmp_path)


def test_population_is_trained_judged_and_described(population: Population) -> None:
    population.train()
    clean, attacked = population.judge()
    assert (clean.id, clean.attack, clean.gate_passed, clean.asr) == ("clean", None, None, None)
    assert attacked.twin == "clean"
    assert attacked.twin_acc == clean.acc
    assert attacked.gate_passed is (not attacked.gate_reasons)
    assert attacked.label_map == "one"
    assert attacked.target == 2
    assert attacked.stage == "post"
    assert attacked.image_shape == (3, 32, 32)
    assert attacked.poison_count == int(0.3 * 27)
    assert (attacked.attacker_first, attacked.attacker_last) == (0, 35)
    assert (attacked.held_out_first, attacked.held_out_last) == (36, 39)
    assert attacked.attack_config["pattern"] == "checker"
    checkpoint = population.folder / "models" / attacked.checkpoint
    assert attacked.checkpoint_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert not list(population.folder.rglob("*.partial"))


def test_checkpoint_is_a_plain_state_dict_of_the_loaded_model(population: Population) -> None:
    population.train(only=["clean"])
    saved = torch.load(population.folder / "models" / "clean.pt", weights_only=True)
    loaded = population.load(population.plan.models[0])
    assert type(saved) is dict
    assert all(torch.equal(saved[name], t) for name, t in loaded.state_dict().items())
    assert not loaded.training


def test_attacked_model_waits_for_its_twin(population: Population) -> None:
    population.train(only=["attacked"])
    (card,) = population.judge()
    assert card.asr is not None
    assert card.gate_passed is None
    population.train(only=["clean"])
    assert population.judge()[1].gate_passed is not None


def test_trained_model_is_not_trained_again(population: Population) -> None:
    population.train(only=["clean"])
    checkpoint = population.folder / "models" / "clean.pt"
    before = checkpoint.stat().st_mtime_ns
    population.train(only=["clean"])
    assert checkpoint.stat().st_mtime_ns == before


def test_shards_share_the_models_out(population: Population) -> None:
    population.train(shard=(1, 2))
    assert [card.id for card in population.judge()] == ["attacked"]


def _hold(path: str, connection: object) -> None:
    import fcntl

    with Path(path).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        connection.send("held")  # type: ignore[attr-defined]  # a pipe's end
        connection.recv()  # type: ignore[attr-defined]  # waits to be killed


def test_model_claimed_by_a_living_process_is_left_to_it(population: Population) -> None:
    lock = population.folder / "locks" / "model_clean.lock"
    lock.parent.mkdir(parents=True)
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    holder = context.Process(target=_hold, args=(str(lock), theirs))
    holder.start()
    assert ours.recv() == "held"
    population.train(only=["clean"])
    assert population.judge() == []
    holder.kill()
    holder.join()
    population.train(only=["clean"])
    assert [card.id for card in population.judge()] == ["clean"]


def test_unknown_id_raises(population: Population) -> None:
    with pytest.raises(ConfigError, match="has no models"):
        population.train(only=["other"])


def test_untrained_model_cannot_be_loaded(population: Population) -> None:
    with pytest.raises(ConfigError, match="is not trained under this plan"):
        population.load(population.plan.models[0])


@pytest.mark.parametrize(
    ("id_", "change", "field"),
    [
        ("clean", {"epochs": 2}, "epochs"),
        ("clean", {"population": "B"}, "population"),
        ("attacked", {"config": {"target": 1, "rate": 0.3}}, "target"),
        # trained at 0.3, which a plan that says nothing of the rate does not ask for
        ("attacked", {"config": {"target": 2}}, "rate"),
        ("attacked", {"config": {"target": 2, "rate": 0.3, "patch_size": 6}}, "patch_size"),
    ],
)
def test_folder_of_another_plan_is_refused(
    population: Population, id_: str, change: dict[str, object], field: str
) -> None:
    population.train()
    models = tuple(replace(m, **change) if m.id == id_ else m for m in population.plan.models)
    other = Population(
        Plan(name="other", models=models),
        folder=population.folder,
        data_root=population.data_root,
    )
    with pytest.raises(ConfigError, match=f"another {field} than the plan's"):
        other.judge()


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({}, None),
        ({"patch_size": 3}, None),  # what an open size comes to at 32 pixels
        ({"patch_size": 6}, "patch_size"),
        ({"pattern": "white"}, "pattern"),
        ({"colour": 1}, "colour"),
    ],
)
def test_settings_on_a_card_are_compared_in_full(
    population: Population, change: dict[str, object], differing: str | None
) -> None:
    population.train(only=["attacked"])
    path = population.folder / "cards" / "attacked.json"
    record = json.loads(path.read_text())
    assert record["attack_config"]["patch_size"] == 3
    record["attack_config"] |= change
    path.write_text(json.dumps(record))
    if differing is None:
        assert population.card(population.plan.models[1]) == read_card(path)
    else:
        with pytest.raises(ConfigError, match=f"with another {differing} than the plan's"):
            population.card(population.plan.models[1])


@pytest.mark.parametrize(("pattern", "is_same"), [("checker", True), ("white", False)])
def test_setting_that_an_older_card_lacks_was_at_its_default(
    population: Population, pattern: str, is_same: bool
) -> None:
    population.train(only=["attacked"])
    path = population.folder / "cards" / "attacked.json"
    record = json.loads(path.read_text())
    del record["attack_config"]["pattern"]
    path.write_text(json.dumps(record))
    config = {"target": 2, "rate": 0.3, "pattern": pattern}
    model = replaced(population, attacked={"config": config}).plan.models[1]
    assert (differences(read_card(path), model) == []) is is_same


@pytest.mark.parametrize(
    ("size", "on_card", "side", "is_same"),
    [
        (None, [3, 32, 32], 3, True),
        (None, [3, 64, 64], 6, True),
        (None, [3, 64, 64], 3, False),
        # older cards
        (None, [], 3, True),
        (64, [], 6, True),
        (64, [], 3, False),
    ],
)
def test_what_a_setting_leaves_open_follows_from_the_size_on_the_card(
    population: Population, size: int | None, on_card: list[int], side: int, is_same: bool
) -> None:
    population.train(only=["attacked"])
    path = population.folder / "cards" / "attacked.json"
    record = json.loads(path.read_text())
    record |= {"image_size": size, "image_shape": on_card}
    record["attack_config"]["patch_size"] = side
    path.write_text(json.dumps(record))
    model = replaced(population, attacked={"image_size": size}).plan.models[1]
    assert differences(read_card(path), model) == ([] if is_same else ["patch_size"])


def test_cards_are_compared_without_the_data(population: Population, tmp_path: Path) -> None:
    population.train()
    cards = population.judge()
    (tmp_path / "toy_jpeg.npz").unlink()
    later = Population(population.plan, folder=population.folder, data_root=tmp_path)
    assert later.judge() == cards


@pytest.mark.parametrize(
    ("trained", "planned", "is_same"),
    [
        ({"target": 2, "rate": 0.05}, {"target": 2}, True),
        ({"target": 2}, {"target": 2, "rate": 0.05, "patch_size": 3}, True),
        ({"target": 2}, {"target": 2, "rate": 0.3}, False),
        ({"target": 2}, {"target": 1}, False),
    ],
)
def test_settings_of_a_base_attack_are_compared_in_full(
    population: Population, trained: dict[str, object], planned: dict[str, object], is_same: bool
) -> None:
    population.train(only=["attacked"])
    path = population.folder / "cards" / "attacked.json"
    older = {"base": "badnets", "base_config": trained, "batch_size": 500}
    card = replace(read_card(path), attack="bn_reparam", attack_config=older)
    changes = {"attack": "bn_reparam", "config": {"base_config": planned}}
    model = replaced(population, attacked=changes).plan.models[1]
    assert differences(card, model) == ([] if is_same else ["base_config"])


def test_settings_of_a_base_attack_survive_the_card(population: Population) -> None:
    base_config = {"target": 2, "rate": 0.3, "pattern": "white"}
    hidden = replaced(
        population, attacked={"attack": "bn_reparam", "config": {"base_config": base_config}}
    )
    hidden.train()
    assert hidden.card(hidden.plan.models[1]) is not None
    path = hidden.folder / "cards" / "attacked.json"
    assert json.loads(path.read_text())["attack_config"]["base_config"]["patch_size"] == 3


def test_card_survives_a_round_trip(population: Population, tmp_path: Path) -> None:
    population.train()
    for card in population.judge():
        write_card(card, tmp_path / "card.json")
        assert read_card(tmp_path / "card.json") == card


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "expected a model card"), ("[]", "expected a JSON object"), ("{}", "cannot be made")],
)
def test_file_that_is_no_card_raises(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_card(tmp_path / "card.json")


def test_missing_card_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a model card"):
        read_card(tmp_path / "none.json")


def test_clean_model_has_no_attack() -> None:
    assert make_attack(tiny_plan(), tiny_data()) is None


def test_unknown_attack_raises() -> None:
    with pytest.raises(ConfigError, match="unknown attack 'badnet'"):
        make_attack(tiny_plan(attack="badnet"), tiny_data())


def test_unknown_option_of_an_attack_raises() -> None:
    with pytest.raises(ConfigError, match="found also"):
        make_attack(tiny_plan(attack="badnets", config={"colour": 1}), tiny_data())


def test_missing_data_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found neither"):
        find_data("toy", tmp_path, cache=None)


def test_cards_say_which_population_and_plan(population: Population) -> None:
    population.train(only=["clean"])
    (card,) = population.judge()
    assert (card.plan, card.population, card.device) == ("toy", "A", "cpu")


def test_card_of_the_first_version_gets_its_population_when_judged(population: Population) -> None:
    population.train(only=["clean"])
    path = population.folder / "cards" / "clean.json"
    record = json.loads(path.read_text())
    later = ("plan", "starts_from", "surrogate", "limit", "image_size", "victim", "device")
    older = {k: v for k, v in record.items() if k not in later}
    path.write_text(json.dumps({**older, "population": "toy", "card_version": 1}))
    old = read_card(path)
    assert (old.plan, old.population) == ("toy", None)
    population.judge()
    assert json.loads(path.read_text()) == record


def test_checkpoint_does_not_depend_on_who_wrote_it(population: Population, tmp_path: Path) -> None:
    other = Population(
        population.plan, folder=tmp_path / "another folder", data_root=population.data_root
    )
    digests = []
    for one in (population, other):
        one.train(only=["clean"])
        digests.append(one.judge()[0].checkpoint_sha256)
    assert digests[0] == digests[1]


def test_events_tell_of_epochs_models_and_the_gate(population: Population) -> None:
    events: list[Event] = []
    population.report = events.append
    population.train()
    told = [(event.kind, event.id) for event in events]
    assert told == [
        ("epoch", "clean"),
        ("trained", "clean"),
        ("epoch", "attacked"),
        ("trained", "attacked"),
        ("judged", "attacked"),
    ]
    assert events[0].seconds > 0


def replaced(population: Population, **changes: dict[str, object]) -> Population:
    """Return the population with fields of models changed, by id."""
    models = [replace(m, **changes.get(m.id, {})) for m in population.plan.models]
    return Population(
        Plan(name="toy", models=tuple(models)),
        folder=population.folder,
        data_root=population.data_root,
    )


def test_model_that_raises_is_recorded_and_the_others_are_trained(population: Population) -> None:
    bad = replaced(population, clean={"batch_size": 1000})
    events: list[Event] = []
    bad.report = events.append
    assert bad.train() == ("clean",)
    assert [card.id for card in bad.judge()] == ["attacked"]
    record = json.loads((bad.folder / "failed" / "clean.json").read_text())
    assert record["error"].startswith("ConfigError: batch_size must be at most")
    assert "Traceback" in record["traceback"][0]
    assert [event.id for event in events if event.kind == "failed"] == ["clean"]
    assert population.train() == ()
    assert not (population.folder / "failed" / "clean.json").exists()


def test_failed_model_is_tried_once_in_a_run_and_again_in_the_next(population: Population) -> None:
    bad = replaced(population, clean={"batch_size": 1000})
    events: list[Event] = []
    bad.report = events.append
    for run in ("one", "one", "two"):
        assert bad.train(only=["clean"], run=run) == ("clean",)
    assert [event.kind for event in events] == ["failed", "failed"]


def test_attack_that_cannot_be_judged_is_recorded(
    population: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    population.train(only=["clean"])

    def broken(*arguments: object) -> float:
        raise RuntimeError("no rate")

    monkeypatch.setattr("modelaudit.bench.runner.attack_success_rate", broken)
    population.train(only=["attacked"])
    assert population.judge()[1].gate_passed is None
    record = json.loads((population.folder / "failed" / "attacked.json").read_text())
    assert record["error"] == "RuntimeError: no rate"


def test_model_starts_from_the_final_weights_of_another(population: Population) -> None:
    changes = {"starts_from": "clean", "epochs": 0, "attack": None, "config": {}}
    edited = replaced(population, attacked=changes)
    edited.train(only=["attacked"])
    clean, copy = (edited.load(model).state_dict() for model in edited.plan.models)
    assert all(torch.equal(clean[name], copy[name]) for name in clean)
    assert edited.judge()[1].final_loss is None


def test_failure_of_what_a_model_needs_is_its_own(population: Population) -> None:
    changes = {"starts_from": "clean", "epochs": 0}
    bad = replaced(population, clean={"batch_size": 1000}, attacked=changes)
    assert bad.train(only=["attacked"]) == ("attacked",)
    record = json.loads((bad.folder / "failed" / "attacked.json").read_text())
    assert "model 'clean', which it needs, failed" in record["error"]


def test_attack_is_given_the_surrogate(
    population: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def prepare(
        self: object, images: Tensor, labels: Tensor, *, surrogate: object, generator: object
    ) -> None:
        assert callable(surrogate)
        batch = torch.rand(2, 3, 32, 32, requires_grad=True)
        (gradient,) = torch.autograd.grad(surrogate(batch).sum(), batch)
        given.append(gradient)

    monkeypatch.setattr("modelaudit.attacks.badnets.BadNetsAttack.prepare", prepare)
    replaced(population, attacked={"surrogate": "clean"}).train(only=["attacked"])
    assert given[0].abs().sum() > 0  # type: ignore[attr-defined]  # a tensor


def test_limited_model_sees_the_first_images_only(population: Population) -> None:
    small = replaced(population, clean={"limit": 20}, attacked={"limit": 20})
    small.train()
    clean, attacked = small.judge()
    assert (clean.attacker_last, clean.held_out_first, clean.held_out_last) == (19, 36, 39)
    assert attacked.poison_count == int(0.3 * 15)


def test_population_is_a_choice(population: Population) -> None:
    two = replaced(population, attacked={"population": "B"})
    assert [model.id for model in two.choose(population="B")] == ["attacked"]
    assert [model.id for model in two.choose(population="A", only=["attacked"])] == []


def test_what_a_kill_left_is_removed(population: Population) -> None:
    partial = population.folder / "state" / "clean.1.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"half")
    population.train(only=["clean"])
    assert not list(population.folder.rglob("*.partial"))


def test_missing_data_is_noticed_before_any_training(population: Population) -> None:
    gone = replaced(population, attacked={"dataset": "gone"})
    with pytest.raises(DataError, match="found neither"):
        gone.train()
    assert not (population.folder / "models").exists()


def test_work_names_a_plan_and_trains_it(population: Population, tmp_path: Path) -> None:
    work = TrainWork(
        plan=str(tmp_path / "plan.toml"),
        folder=population.folder,
        data_root=tmp_path,
        only=("clean",),
    )
    assert work("", lambda _: None) == ()
    assert [card.id for card in population.judge()] == ["clean"]


LEARNED = {
    "attack": "iad",
    "config": {
        "target": 2,
        "rate": 0.3,
        "widths": (4, 4, 8),
        "mask_epochs": 1,
        "mask_images": 16,
        "mask_batch_size": 8,
    },
}


def test_learned_trigger_is_the_one_of_the_card(population: Population) -> None:
    learned = replaced(population, attacked=LEARNED)
    learned.train(only=["attacked"])
    model = learned.plan.models[1]
    _, attack = learned.attack(model)
    card = learned.card(model)
    assert card is not None
    assert attack.trigger.state_hash() == card.trigger_sha256


@pytest.mark.parametrize("found", ["no such file", "another one"])
def test_attack_without_its_learned_trigger_is_not_judged(
    population: Population, found: str
) -> None:
    learned = replaced(population, attacked=LEARNED)
    learned.train(only=["attacked"])
    path = learned.folder / "state" / "attacked.safetensors"
    if found == "another one":
        tensors = load_file(path)
        changed = next(name for name in tensors if name.startswith("trigger."))
        save_file(tensors | {changed: tensors[changed] + 1}, path)
    else:
        path.unlink()
    with pytest.raises(ConfigError, match=f"that the card of 'attacked' names .* found {found}"):
        learned.attack(learned.plan.models[1])
    learned.train(only=["clean"])
    assert learned.judge()[1].benign_asr is None
    record = json.loads((learned.folder / "failed" / "attacked.json").read_text())
    assert f"found {found}" in record["error"]


def test_attack_of_a_model_that_is_not_trained_raises(population: Population) -> None:
    with pytest.raises(ConfigError, match="is not trained under this plan"):
        population.attack(population.plan.models[1])
    population.train(only=["clean"])
    with pytest.raises(ConfigError, match="is clean"):
        population.attack(population.plan.models[0])


def test_weights_that_the_card_does_not_name_are_not_loaded(population: Population) -> None:
    population.train()
    models = population.folder / "models"
    (models / "clean.pt").write_bytes((models / "attacked.pt").read_bytes())
    with pytest.raises(ConfigError, match="the card of 'clean' names"):
        population.load(population.plan.models[0])


def test_card_counts_what_is_drawn_anew_in_each_batch(population: Population) -> None:
    config = {"target": 2, "rate": 0.2, "noise_rate": 0.4}
    warped = replaced(population, attacked={"attack": "wanet", "config": config})
    warped.train(only=["attacked"])
    (card,) = warped.judge()
    # two batches of 16 of the 36 images
    assert (card.poison_count, card.cover_count) == (2 * 3, 2 * 6)
    assert card.poison_indices_sha256 is None
