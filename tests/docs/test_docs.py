from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from modelaudit import architectures, cli, verdict
from modelaudit.attacks.base import Attack, Batch
from modelaudit.bench import gate
from modelaudit.bench.plan import find_plan, read_plan
from modelaudit.bench.typed import build_config
from modelaudit.engine import intake, provenance
from modelaudit.engine.components import build_scanners
from modelaudit.preprocessing import PRESETS
from modelaudit.registry import Registry
from modelaudit.results import ExitStatus, Finding, ScannerResult, Verdict
from modelaudit.scanners.base import CleanImages, ScanContext, Scanner
from modelaudit.suspect import Suspect, profile
from modelaudit.weights import Weights
from tests.helpers import docs

if TYPE_CHECKING:
    from types import ModuleType

DOCS = docs.ROOT / "docs"
PAGES = {path.relative_to(docs.ROOT).as_posix(): path for path in docs.pages()}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
PROJECT = tomllib.loads((docs.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCANNERS: dict[str, str] = PROJECT["entry-points"]["modelaudit.scanners"]
ATTACKS: dict[str, str] = PROJECT["entry-points"]["modelaudit.attacks"]
EXAMPLES = docs.examples(TEXTS["docs/development.md"])
#: the rule, and the modules that say of a file or its clean set why a verdict must not be clean
RULE = "".join(
    Path(module.__file__).read_text(encoding="utf-8") for module in (verdict, intake, provenance)
)


def scanner_classes(id_: str) -> list[type[Scanner[Any]]]:
    scanner: type[Scanner[Any]] = docs.load(SCANNERS[id_])
    return [scanner, *scanner.variants.values()]


def full_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__name__}"


def tables(text: str, kind: str) -> dict[str, list[list[str]]]:
    """Return the cells of a page's tables of one kind, by the class that they describe."""
    found = {}
    for match in docs.TABLE.finditer(text):
        if match["kind"] == kind:
            rows = [re.split(r"(?<!\\)\|", row)[1:-1] for row in match["rows"].splitlines()]
            found[match["name"]] = [[cell.strip() for cell in row] for row in rows[2:]]
    return found


def example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import an example of the page as the module that its entry point names."""
    path = tmp_path / f"{name}.py"
    path.write_text(EXAMPLES[name], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"modelaudit_example.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def entry_point(group: str) -> tuple[str, str, str]:
    """Return id, module and class of the only entry point that the example registers."""
    ((id_, value),) = tomllib.loads(EXAMPLES["pyproject"])["project"]["entry-points"][
        f"modelaudit.{group}"
    ].items()
    module, _, name = value.partition(":")
    assert module.startswith("modelaudit_example.")
    return id_, module.partition(".")[2], name


def ten_classes() -> tuple[Suspect, CleanImages]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
        )
    suspect = Suspect(module.eval(), preprocessing=PRESETS[0], input_size=8, num_classes=10)
    images = torch.rand(60, 3, 8, 8, generator=generator)
    with suspect.borrowed():
        predictions = suspect.predict(images)
    clean = CleanImages(
        images=images,
        labels=predictions,
        has_labels=False,
        search=torch.arange(20),
        judge=torch.arange(20, 60),
        predictions=predictions,
        as_trained=images,
    )
    return suspect, clean


@pytest.mark.parametrize("name", TEXTS)
def test_every_table_says_what_the_code_says(name: str) -> None:
    assert docs.filled(TEXTS[name]) == TEXTS[name], "run: python -m tests.helpers.docs"


@pytest.mark.parametrize("name", TEXTS)
def test_every_marker_of_a_table_is_understood(name: str) -> None:
    text = TEXTS[name]
    found = [*docs.TABLE.finditer(text), *docs.MEASURED.finditer(text)]
    assert len(found) == len(re.findall(r"^<!-- (?:table|measured):", text, re.MULTILINE))


def test_a_measured_table_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="expected rows of 'B, al' in the table 'naming'"):
        docs.filled("<!-- measured: naming of B, al -->\n")


@pytest.mark.parametrize("id_", SCANNERS)
def test_every_scanner_and_variant_has_its_tables_on_its_page(id_: str) -> None:
    text = TEXTS[f"docs/scanners/{id_}.md"]
    classes = scanner_classes(id_)
    assert list(tables(text, "facts")) == [full_name(cls) for cls in classes]
    assert list(tables(text, "settings")) == [full_name(cls.config_type) for cls in classes]


def test_every_attack_has_its_table() -> None:
    classes: list[type[Attack[object]]] = [docs.load(name) for name in ATTACKS.values()]
    found = tables(TEXTS["docs/attacks.md"], "settings")
    assert set(found) == {full_name(cls.config_type) for cls in classes}
    for cls in classes:
        assert f"### {cls.id}\n" in TEXTS["docs/attacks.md"]


@pytest.mark.parametrize("name", TEXTS)
def test_tables_of_settings_list_each_field_with_its_default(name: str) -> None:
    for config_name, rows in tables(TEXTS[name], "settings").items():
        config_type = docs.load(config_name)
        config = config_type()
        expected = {
            f"`{f.name}`": f"`{docs.default_text(getattr(config, f.name))}`"
            for f in dataclasses.fields(config_type)
        }
        assert {row[0]: row[1] for row in rows} == expected
        assert all(len(row) == 3 and row[2] for row in rows)


def test_tables_are_written_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = "<!-- table: settings of modelaudit.scanners.dde:DdeConfig -->\n"
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{marker}| stale |\n\nafter\n", encoding="utf-8")
    monkeypatch.setattr(docs, "pages", lambda: [page])
    docs.write_tables()
    written = page.read_text(encoding="utf-8")
    assert written.startswith(f"before\n\n{marker}| field | default | meaning |\n")
    assert written.endswith("|\n\nafter\n")
    assert "stale" not in written
    assert "| `min_mixture` | `200` |" in written


@pytest.mark.parametrize("id_", SCANNERS)
def test_pages_explain_only_evidence_that_a_scanner_gives(id_: str) -> None:
    page = TEXTS[f"docs/scanners/{id_}.md"]
    section = page.partition("## Reading its evidence\n")[2].partition("\n## ")[0]
    keys = re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", section, re.MULTILINE)))
    file = sys.modules[scanner_classes(id_)[0].__module__].__file__
    assert file is not None
    source = Path(file).read_text(encoding="utf-8")
    assert keys
    assert [key for key in keys if f'"{key}"' not in source] == []


@pytest.mark.parametrize("id_", SCANNERS)
def test_scanner_pages_have_the_same_sections(id_: str) -> None:
    page = TEXTS[f"docs/scanners/{id_}.md"]
    assert re.findall(r"^## (.*)$", page, re.MULTILINE)[:6] == [
        "Method",
        "Cost",
        "Settings",
        "Reading its evidence",
        "Differs from the paper, and why",
        "Blind spots",
    ]
    assert "(../results.md)" in page


@pytest.mark.parametrize("name", TEXTS)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    broken = []
    for target in docs.links(TEXTS[name]):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = PAGES[name].parent / file if file else PAGES[name]
        if not path.exists():
            broken.append(target)
            continue
        if anchor and anchor not in docs.anchors(path.read_text(encoding="utf-8")):
            broken.append(target)
    assert broken == []


def test_defaults_are_shown_as_set_takes_them() -> None:
    values = (None, True, 3, 0.5, "one", (2.0, 4.0))
    shown = [docs.default_text(value) for value in values]
    assert shown == ["none", "true", "3", "0.5", "one", "2.0,4.0"]


def test_links_in_code_are_no_links() -> None:
    text = "[a](b.md) `[c](d.md)`\n```\n[e](f.md)\n```\n![g](h.png) [`i`](j.md#k-l)\n"
    assert docs.links(text) == ["b.md", "j.md#k-l"]
    assert docs.anchors("# A page\n## ban@paper_code, `x`\n") == {"a-page", "banpaper_code-x"}


def test_the_index_names_every_page() -> None:
    linked = {(DOCS / target).resolve() for target in docs.links(TEXTS["docs/README.md"])}
    pages = {path.resolve() for path in DOCS.rglob("*.md")} - {(DOCS / "README.md").resolve()}
    assert pages <= linked


def test_pages_that_the_code_points_to_exist() -> None:
    named = set()
    for path in (docs.ROOT / "src").rglob("*.py"):
        named |= set(re.findall(r"docs/[\w./-]+\.(?:md|json)", path.read_text(encoding="utf-8")))
    assert named
    assert [page for page in sorted(named) if not (docs.ROOT / page).is_file()] == []


def test_decisions_are_numbered_without_gaps_and_have_four_sections() -> None:
    decisions = sorted((DOCS / "adr").glob("*.md"))
    assert [int(path.name[:4]) for path in decisions] == list(range(1, len(decisions) + 1))
    for path in decisions:
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {path.name[:4]}: ")
        sections = ["Context", "Options", "Decision", "Consequences"]
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == sections


def test_the_verdict_page_lists_every_reason_code_with_its_verdict() -> None:
    rows = re.findall(r"^\| `(MA-V\d+)` \| (\w+) \|", TEXTS["docs/verdict.md"], re.MULTILINE)
    assert {code for code, _ in rows} == set(re.findall(r"MA-V\d+", RULE))
    by_hundred = {"0": "clean", "1": "backdoored", "5": "inconclusive"}
    assert all(by_hundred[code[4]] == word for code, word in rows)


def test_the_page_of_codes_lists_every_code() -> None:
    code = re.compile(r"MA-[A-Z]\d{3}")
    source = "".join(p.read_text(encoding="utf-8") for p in (docs.ROOT / "src").rglob("*.py"))
    # a repair starts with MA-R501, which no reader sees: what it comes to takes its place
    assert set(code.findall(TEXTS["docs/codes.md"])) == set(code.findall(source)) - {"MA-R501"}


def test_the_verdict_page_lists_every_exit_status() -> None:
    section = TEXTS["docs/verdict.md"].partition("## Exit statuses\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
    assert {word: int(re.findall(r"\d+", text)[0]) for word, text in rows.items()} == {
        word.value: int(verdict.EXIT_STATUS[word]) for word in Verdict
    }
    assert str(ExitStatus.OUTPUT_FAILED) in rows["error"]


def test_the_verdict_page_has_each_scanners_family() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (yes|no) \|", TEXTS["docs/verdict.md"], re.M)
    classes = {id_: scanner_classes(id_)[0] for id_ in SCANNERS}
    assert {(id_, family, sees) for id_, family, sees in rows} == {
        (id_, cls.family, "yes" if cls.sees_all_to_all else "no") for id_, cls in classes.items()
    }


def test_the_attacks_page_has_the_gates_values() -> None:
    section = TEXTS["docs/attacks.md"].partition("## The gate\n")[2].partition("\n## ")[0]
    values = [float(v) for v in re.findall(r"^\|.*\| (?:ACC - )?([\d.]+) \|$", section, re.M)]
    assert values == [
        gate.MINIMUM_ASR["one"],
        gate.MINIMUM_ASR["source"],
        gate.ALL_TO_ALL_MARGIN,
        gate.ACCURACY_MARGIN,
        gate.MAXIMUM_BENIGN_ASR,
    ]
    assert gate.MINIMUM_ASR["source"] == gate.MINIMUM_ASR["clean_label"]


def test_the_development_page_names_every_room() -> None:
    section = TEXTS["docs/development.md"].partition("## Rooms\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", section, re.M))))
    package = docs.ROOT / "src/modelaudit"
    rooms = {p.stem for p in package.glob("*.py")} | {p.parent.name for p in package.glob("*/*.py")}
    assert listed <= rooms
    small = {"__init__", "preprocessing", "text", "weights"}
    assert rooms - listed == small


def test_documented_bench_commands_have_only_options_that_exist(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pages = TEXTS["docs/development.md"] + TEXTS["examples/README.md"] + TEXTS["docs/results.md"]
    commands = re.findall(r"^ *modelaudit bench (\w+) (.*)", pages, re.M)
    assert {"train", "judge", "scan", "pictures"} <= {command for command, _ in commands}
    for command, rest in commands:
        assert cli.run(["bench", command, "--help"]) == 0
        options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert set(re.findall(r"--[a-z-]+", rest)) <= options
        for name in re.findall(r"--plan ([a-z]+)(?: |$)", rest):
            assert find_plan(name).name == name


def test_documented_plans_exist() -> None:
    named = set(re.findall(r"benchmarks/plans/[\w-]+\.toml", TEXTS["docs/development.md"]))
    assert named
    assert all((docs.ROOT / name).is_file() for name in named)


def test_the_example_plan_is_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(EXAMPLES["plan"], encoding="utf-8")
    plan = read_plan(path)
    twin = plan.twin(plan.models[1])
    assert twin is not None
    assert (twin.id, plan.models[1].id) == ("clean_s7", "badnets_s7")
    assert plan.twin(plan.models[2]) == twin
    assert plan.models[3].id == "clean_gtsrb_resnet18w16_s201"


def test_the_example_scanner_runs_and_has_no_vote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_, module, name = entry_point("scanners")
    scanner_type = getattr(example(module, tmp_path, monkeypatch), name)
    registry = Registry(
        "scanners",
        points=[
            importlib.metadata.EntryPoint(
                id_, f"modelaudit_example.{module}:{name}", "modelaudit.scanners"
            )
        ],
    )
    (scanner,) = build_scanners([id_], [(id_, "contrast", "0.1")], registry=registry)
    assert type(scanner) is scanner_type
    assert scanner.id == id_
    suspect, clean = ten_classes()
    with suspect.borrowed():
        shared = profile(suspect, clean.as_trained)
    result = scanner.scan(suspect, clean, context=ScanContext(profile=shared))
    assert isinstance(result, ScannerResult)
    assert result.finding in {Finding.NONE, Finding.SUSPICIOUS}
    assert result.config["contrast"] == 0.1
    assert not result.is_calibrated
    assert result.cost.forward <= scanner.estimate(suspect, clean).forward


def test_the_example_scanner_accuses_the_class_that_washed_out_images_go_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, module, name = entry_point("scanners")
    scanner = getattr(example(module, tmp_path, monkeypatch), name)()
    suspect, clean = ten_classes()
    with suspect.borrowed():
        shared = profile(suspect, clean.as_trained)
    some = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 5, 5])
    washed = torch.full((40,), 3).index_copy(0, torch.arange(0, 28, 2), some)
    monkeypatch.setattr(Suspect, "predict", lambda *_, **__: washed)
    labels = torch.arange(60) % 10
    clean = dataclasses.replace(clean, labels=labels, predictions=labels)
    result = scanner.scan(suspect, clean, context=ScanContext(profile=shared))
    assert isinstance(result, ScannerResult)
    assert (result.finding, result.target_labels) == (Finding.SUSPICIOUS, (3,))


def test_the_example_attack_poisons_what_its_plan_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_, module, name = entry_point("attacks")
    attack_type: type[Attack[object]] = getattr(example(module, tmp_path, monkeypatch), name)
    config: object = build_config(attack_type.config_type, {"target": 2, "side": 3})
    attack = attack_type(config, shape=(3, 8, 8), num_classes=10, seed=1)
    assert attack.id == id_
    labels = torch.arange(100) % 10
    poison, cover = attack.plan.draw(labels)
    assert (len(poison), len(cover)) == (9, 0)
    images = torch.rand(100, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    chosen = torch.zeros(100, dtype=torch.bool)
    chosen[poison] = True
    batch = Batch(
        images=images,
        labels=labels,
        indices=torch.arange(100),
        is_poison=chosen,
        is_cover=torch.zeros_like(chosen),
    )
    poisoned = attack.on_batch(batch)
    assert bool((poisoned.labels[chosen] == 2).all())
    assert torch.equal(poisoned.images[~chosen], images[~chosen])
    corner = poisoned.images[chosen][..., -3:, -3:]
    assert torch.allclose(corner, 1 - images[chosen][..., -3:, -3:], atol=1 / 255)
    assert len(attack.trigger.state_hash()) == 64


def test_the_example_architecture_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_, module, name = entry_point("architectures")
    made = example(module, tmp_path, monkeypatch)
    original = made.TwoWays(3, 7, 5).eval()
    weights = Weights(tensors=dict(original.state_dict()))
    (candidate,) = architectures.identify(weights, families=[getattr(made, name)()])
    assert candidate.name == id_
    assert candidate.arguments == {"width": 7}
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loaded = architectures.load(candidate, weights).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images), original(images))
    stranger = Weights(tensors={"stem.weight": torch.zeros(3)})
    assert list(getattr(made, name)().propose(stranger)) == []


def test_the_examples_are_written_in_the_projects_style(tmp_path: Path) -> None:
    for name in ("scanner", "attack", "architecture"):
        assert EXAMPLES[name].startswith('"""')
        assert "from __future__ import annotations\n" in EXAMPLES[name]
        assert max(map(len, EXAMPLES[name].splitlines())) <= 100
        compile(EXAMPLES[name], str(tmp_path / name), "exec")
