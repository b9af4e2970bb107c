from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from modelaudit.bench.__main__ import main
from modelaudit.bench.cards import read_card, write_card
from modelaudit.bench.plan import Plan, read_plan
from modelaudit.bench.runner import Population, find_data, make_attack
from modelaudit.errors import ConfigError, DataError
from tests.helpers.attacks import tiny_data, tiny_plan, write_pack

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
    [("clean", {"epochs": 2}, "epochs"), ("attacked", {"config": {"target": 1}}, "target")],
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


def test_command_trains_and_judges(
    population: Population, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    place = ["--plan", str(tmp_path / "plan.toml"), "--out", str(population.folder)]
    place += ["--data", str(tmp_path)]
    threads = str(torch.get_num_threads())
    assert main(["train", *place, "--threads", threads, "--shard", "0/1"]) == 0
    assert main(["judge", *place]) == 0
    card = json.loads((population.folder / "cards" / "attacked.json").read_text())
    assert card["twin"] == "clean"


def test_command_reports_an_unusable_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    status = main(["judge", "--plan", str(tmp_path / "none"), "--out", str(tmp_path)])
    assert status == 2
    assert "expected a plan in TOML" in capsys.readouterr().err


@pytest.mark.parametrize("shard", ["2/2", "1", "a/b", "-1/2"])
def test_shard_out_of_range_is_a_usage_error(
    population: Population, tmp_path: Path, shard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    place = ["--plan", str(tmp_path / "plan.toml"), "--out", str(population.folder)]
    with pytest.raises(SystemExit, match="2"):
        main(["train", *place, f"--shard={shard}"])
