from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.attacks.badnets import BadNetsConfig
from modelaudit.bench.attacked import make_attack
from modelaudit.bench.plan import builtin_plans, find_plan, read_plan
from modelaudit.bench.typed import build_config
from modelaudit.errors import ConfigError
from modelaudit.registry import Registry
from tests.helpers.attacks import tiny_data, tiny_plan

if TYPE_CHECKING:
    from modelaudit.bench.data import ImageData

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
        (HEAD + CLEAN + 'population = "C"\n', "population of model 'a' must be one of"),
        (HEAD + CLEAN + "limit = 0\n", "limit of model 'a' must be positive"),
        (HEAD + CLEAN + "epochs = 0\n", "epochs of model 'a' must be positive"),
        (HEAD + CLEAN + 'starts_from = "a"\nepochs = -1\n', "must not be negative"),
        (HEAD + CLEAN + 'starts_from = "z"\n', "has no models \\['z'\\]"),
        (HEAD + CLEAN + 'starts_from = "a"\n', "in a circle"),
        (HEAD + CLEAN + ATTACKED + 'starts_from = "a"\nwidth = 8\n', "the same width"),
        (HEAD + CLEAN + ATTACKED + 'surrogate = "b"\n', "must be a clean model"),
        (HEAD + CLEAN + "[architectures]\ncifar_resnet18 = 3\n", "must hold a table per name"),
        ("grid = 3\n" + CLEAN, "tables \\[\\[model\\]\\] or"),
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


def test_fingerprint_of_a_plan_without_the_later_fields_is_what_it_was() -> None:
    plan = tiny_plan(attack="badnets", config={"target": 1})
    # written down when ModelPlan had neither population nor any of the fields after it
    expected = "da45f4b0598252bce40d4f579db2de77ab86ee216ab40ee804240a2094b3f33a"
    assert plan.fingerprint() == expected
    assert replace(plan, population="B").fingerprint() == expected


@pytest.mark.parametrize(
    "change", [{"starts_from": "a"}, {"surrogate": "a"}, {"limit": 9}, {"image_size": 64}]
)
def test_fingerprint_follows_the_later_fields(change: dict[str, object]) -> None:
    plan = tiny_plan()
    assert replace(plan, **change).fingerprint() != plan.fingerprint()


def test_twin_of_a_model_that_starts_from_another_is_that_ones(tmp_path: Path) -> None:
    later = '[[model]]\nid = "c"\nseed = 5\nattack = "badnets"\nstarts_from = "b"\nepochs = 0\n'
    last = '[[model]]\nid = "d"\nseed = 6\nattack = "badnets"\nstarts_from = "a"\n'
    plan = read_plan(write(tmp_path, HEAD + CLEAN + ATTACKED + later + last))
    clean, _, edited, warm = plan.models
    assert plan.twin(edited) == clean
    assert plan.twin(warm) == clean


def test_twin_may_be_of_another_population_and_has_no_surrogate() -> None:
    attacked = tiny_plan("b", attack="badnets", population="B", surrogate="z")
    assert tiny_plan("a").is_twin_of(attacked)


def test_defaults_by_data_and_architecture_go_between_the_plans_and_the_models(
    tmp_path: Path,
) -> None:
    tables = "[datasets.gtsrb]\nflip = false\nepochs = 7\n[architectures.cifar_vgg16]\nepochs = 8\n"
    models = CLEAN + 'dataset = "gtsrb"\n' + '[[model]]\nid = "b"\nseed = 1\n'
    models += 'dataset = "gtsrb"\narchitecture = "cifar_vgg16"\nflip = true\n'
    one, two = read_plan(write(tmp_path, HEAD + tables + models)).models
    assert (one.epochs, one.flip) == (7, False)
    assert (two.epochs, two.flip) == (8, True)


def test_unknown_plan_raises_and_names_the_built_in_ones() -> None:
    with pytest.raises(ConfigError, match="cpu, paper, smoke, tiny"):
        find_plan("cpuu")


@pytest.mark.parametrize("name", builtin_plans())
def test_built_in_plans_can_be_read(name: str) -> None:
    plan = find_plan(name)
    assert plan.name == name
    assert {model.population for model in plan.models} == {"A", "B"}


def test_plan_file_is_found_by_its_path(tmp_path: Path) -> None:
    assert find_plan(str(write(tmp_path, HEAD + CLEAN))).name == "plan"


def test_cpu_plan_holds_what_it_promises() -> None:
    plan = find_plan("cpu")
    parts = {p: [m for m in plan.models if m.population == p] for p in ("A", "B")}
    for models in parts.values():
        assert sum(model.attack is None for model in models) >= 30
    attacks = {p: {m.attack for m in models} for p, models in parts.items()}
    assert attacks["B"] - attacks["A"] == {"bpp", "adap_patch", "ssdt"}
    assert attacks["A"] <= attacks["B"]
    for attack in attacks["B"] - {None}:
        counts = [sum(m.attack == attack for m in models) for models in parts.values()]
        assert sum(counts) >= 3
        assert counts[1] >= 2
    nets = {p: {m.architecture for m in models} for p, models in parts.items()}
    assert nets["B"] - nets["A"] == {"cifar_preact_resnet18"}
    assert not {m.seed for m in parts["A"]} & {m.seed for m in parts["B"]}


#: side of the images and classes of the data that the plans for a GPU name
DATA = {"cifar10": (32, 10), "gtsrb": (32, 43), "tiny_imagenet": (64, 200)}


def data_of(name: str) -> ImageData:
    """Return three empty images of each class of a data set."""
    size, classes = DATA[name]
    images = torch.zeros(3 * classes, 3, size, size, dtype=torch.uint8)
    labels = torch.arange(3 * classes) % classes
    return replace(
        tiny_data(),
        train_images=images,
        train_labels=labels,
        classes=tuple(map(str, range(classes))),
    )


@pytest.mark.parametrize("name", ["paper", "tiny"])
def test_plans_for_a_gpu_hold_every_attack_and_all_to_all(name: str) -> None:
    models = find_plan(name).models
    assert {m.attack for m in models} == {None, *Registry("attacks").ids()}
    for population in ("A", "B"):
        kinds = {
            m.attack
            for m in models
            if m.population == population and m.config.get("label_map") == "all"
        }
        assert kinds == {"badnets", "wanet", "iad", "bpp"}
    clb = {m.architecture for m in models if m.attack == "clb"}
    assert clb == {m.architecture for m in models}
    seeds = [{m.seed for m in models if m.population == p} for p in ("A", "B")]
    assert not seeds[0] & seeds[1]


@pytest.mark.parametrize("name", ["paper", "tiny"])
def test_attacks_of_the_plans_for_a_gpu_can_be_made(name: str) -> None:
    made = {(m.dataset, m.attack, str(dict(m.config))): m for m in find_plan(name).models}
    for model in made.values():
        attack = make_attack(model, data_of(model.dataset))
        if model.attack == "badnets":
            assert attack is not None
            side = 3 * DATA[model.dataset][0] // 32
            assert attack.trigger.state()["pattern"].shape == (3, side, side)
        if model.attack == "bn_reparam":
            assert attack is not None
            assert model.starts_from is not None
            start = find_plan(name).model(model.starts_from)
            base = make_attack(start, data_of(model.dataset))
            assert base is not None
            assert attack.trigger.state_hash() == base.trigger.state_hash()
            assert attack.label_map == base.label_map
        if model.attack == "ssdt":
            victims = model.batch_size / DATA[model.dataset][1]
            assert max(victims, float(model.config.get("min_victims", 0))) >= 20


@pytest.mark.parametrize("name", ["development", "test"])
def test_cpu_plan_holds_the_older_plans_models_unchanged(name: str) -> None:
    plan = find_plan("cpu")
    for model in read_plan(PLANS / f"{name}.toml").models:
        assert plan.model(model.id).fingerprint() == model.fingerprint()
        assert plan.model(model.id).population == "A"


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
