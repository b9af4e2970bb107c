from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modelaudit.attacks.badnets import BadNetsConfig
from modelaudit.bench.plan import build_config, read_plan
from modelaudit.errors import ConfigError
from tests.helpers.attacks import tiny_plan

PLANS = Path("benchmarks/plans")

CLEAN = '[[model]]\nid = "a"\nseed = 1\n'
HEAD = "[defaults]\nepochs = 2\n"
ATTACKED = '[[model]]\nid = "b"\nseed = 1\nattack = "badnets"\nconfig = { target = 3 }\n'


def write(path: Path, text: str) -> Path:
    file = path / "plan.toml"
    file.write_text(text)
    return file


def test_plan_takes_defaults_and_finds_twins(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path, 'name = "toy"\n' + HEAD + CLEAN + ATTACKED))
    clean, attacked = plan.models
    assert plan.name == "toy"
    assert (clean.epochs, clean.width, clean.attack) == (2, 16, None)
    assert dict(attacked.config) == {"target": 3}
    assert plan.twin(attacked) == clean


def test_plan_without_a_name_is_called_as_its_file(tmp_path: Path) -> None:
    assert read_plan(write(tmp_path, HEAD + CLEAN)).name == "plan"


@pytest.mark.parametrize(
    "change", [{"seed": 9}, {"epochs": 9}, {"width": 8}, {"attack": "blend"}, {"flip": False}]
)
def test_model_that_differs_is_no_twin(change: dict[str, object]) -> None:
    attacked = tiny_plan("b", attack="badnets", config={"target": 1})
    clean = tiny_plan("a")
    assert clean.is_twin_of(attacked)
    assert not replace(clean, **change).is_twin_of(attacked)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("= 3", "expected a plan in TOML"),
        ("other = 3\n" + CLEAN, "found also"),
        (HEAD, "at least one table"),
        ("defaults = 3\n" + CLEAN, "needs a table 'defaults'"),
        (HEAD + CLEAN + CLEAN, "more than once"),
        (HEAD + ATTACKED, "needs a clean twin"),
        (HEAD + CLEAN + "colour = 3\n", "found also \\['colour'\\]"),
        (CLEAN, "epochs"),
        (HEAD + CLEAN + "width = 0\n", "width of model 'a' must be positive"),
        (HEAD + CLEAN + 'width = "wide"\n', "width must be of type int"),
        (HEAD + CLEAN + "flip = 1\n", "flip must be of type bool"),
        (HEAD + CLEAN + "config = 3\n", "config must be a table"),
        (HEAD + CLEAN + "config = { target = 3 }\n", "no attack"),
        (HEAD + CLEAN + 'architecture = "resnet"\n', "architecture of model 'a'"),
        (HEAD + '[[model]]\nid = "../a"\nseed = 1\n', "a model id must consist"),
    ],
)
def test_plan_that_cannot_be_used_raises(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_plan(write(tmp_path, text))


def test_missing_plan_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a plan in TOML"):
        read_plan(tmp_path / "none.toml")


def test_fingerprint_follows_every_field() -> None:
    plan = tiny_plan(attack="badnets", config={"target": 1})
    assert plan.fingerprint() == tiny_plan(attack="badnets", config={"target": 1}).fingerprint()
    changed = [
        replace(plan, id="other"),
        replace(plan, epochs=7),
        replace(plan, config={"target": 2}),
    ]
    assert len({p.fingerprint() for p in [plan, *changed]}) == 4


def test_whole_number_is_taken_for_a_fraction() -> None:
    config = build_config(BadNetsConfig, {"rate": 1, "label_map": "all"})
    assert config.rate == 1.0
    assert config.label_map == "all"


@pytest.mark.parametrize("name", ["development", "test", "examples"])
def test_plans_of_the_project_can_be_read(name: str) -> None:
    plan = read_plan(PLANS / f"{name}.toml")
    assert plan.name == name


def test_plans_of_the_project_share_no_seed() -> None:
    seeds = [
        {model.seed for model in read_plan(PLANS / f"{name}.toml").models}
        for name in ("development", "test", "examples")
    ]
    assert len(set.union(*seeds)) == sum(map(len, seeds))


def test_test_population_is_the_promised_one() -> None:
    models = [m for m in read_plan(PLANS / "test.toml").models if not m.id.startswith("twin_")]
    kinds = [(m.attack, m.config.get("label_map", "one")) for m in models]
    assert len(models) == 12
    assert kinds.count((None, "one")) == 4
    assert kinds.count(("badnets", "one")) == 3
    assert kinds.count(("blend", "one")) == 3
    assert kinds.count(("badnets", "all")) == 2
    assert {m.width for m in models} == {16, 32}
    assert any(m.architecture == "cifar_vgg16" for m in models)
    targets = [m.config["target"] for m in models if "target" in m.config]
    assert len(set(targets)) == len(targets) == 6
