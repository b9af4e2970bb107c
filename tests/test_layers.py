"""The rules on who may import whom, read off the source."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import modelaudit

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(modelaudit.__file__).parent

#: The nouns that every room shares, and what they need of each other.
NOUNS = {
    "errors": set[str](),
    "progress": set[str](),
    "results": set[str](),
    "repair_results": {"results"},
    "seeds": set[str](),
    "text": set[str](),
    "weights": set[str](),
    "preprocessing": {"errors"},
    "registry": {"errors"},
    "config": {"errors", "results"},
}
#: What a room may import besides the nouns: only what lies below it.
ROOMS = {
    "functional": set[str](),
    "hardware": set[str](),
    "checkpoint": set[str](),
    "architectures": set[str](),
    "cleanset": set[str](),
    "fit": {"architectures", "cleanset", "functional"},
    "suspect": {"functional", "hardware"},
    "component": {"suspect"},
    "scanners": {"component", "functional", "suspect"},
    # A repair prunes by the statistic of the scanner that points at the channels.
    "repairs": {"component", "functional", "hardware", "scanners", "suspect"},
    "attacks": {"functional", "hardware", "suspect"},
    "verdict": set[str](),
    # A rate is measured for the very rule that decides, on outcomes kept as reports keep them.
    "calibration": {"functional", "report", "verdict"},
    "report": set[str](),
    "engine": {
        "architectures",
        "checkpoint",
        "cleanset",
        "fit",
        "scanners",
        "repairs",
        "suspect",
        "verdict",
        "calibration",
        "functional",
        "hardware",
    },
    "fleet": {"engine", "verdict", "report"},
    "bench": {
        "architectures",
        "attacks",
        "checkpoint",
        "cleanset",
        "engine",
        "fit",
        "repairs",
        "report",
        "scanners",
        "suspect",
        "verdict",
        "calibration",
        "functional",
        "hardware",
    },
    "cli": {"attacks", "bench", "calibration", "engine", "fleet", "report"},
    # The package itself re-exports; nothing below may go through it.
    "__init__": {"architectures", "engine", "repairs", "scanners", "suspect"},
}


@dataclass(frozen=True)
class Import:
    """One import statement's target."""

    file: str
    room: str
    line: int
    name: str
    is_at_module_level: bool
    is_for_types: bool

    @property
    def top(self) -> str:
        """The distribution's package."""
        return self.name.split(".")[0]

    @property
    def target(self) -> str:
        """The room of our own that is imported, or ""."""
        parts = self.name.split(".")
        return parts[1] if parts[0] == "modelaudit" and len(parts) > 1 else ""


def _walk(
    node: ast.AST, *, is_module: bool = True, is_typing: bool = False
) -> Iterator[tuple[ast.AST, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        inner_module = is_module and not isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        )
        inner_typing = is_typing or (
            isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        )
        yield child, inner_module, inner_typing
        yield from _walk(child, is_module=inner_module, is_typing=inner_typing)


def imports_of(path: Path) -> list[Import]:
    found = []
    relative = path.relative_to(ROOT)
    room = relative.parts[0].removesuffix(".py")
    for node, is_module, is_typing in _walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(("modelaudit", *relative.parts[:-1])) if node.level else ""
            module = ".".join(part for part in (package, node.module or "") if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [
            Import(str(relative), room, node.lineno, name, is_module, is_typing) for name in names
        ]
    return found


FILES = sorted(ROOT.rglob("*.py"))
IMPORTS = [found for path in FILES for found in imports_of(path)]


def shown(found: list[Import]) -> list[str]:
    return [f"{i.file}:{i.line} imports {i.name}" for i in found]


def test_the_source_is_found() -> None:
    assert len(FILES) > 50
    assert any(i.top == "torch" and i.is_for_types for i in IMPORTS)
    assert any(i.top == "torch" and not i.is_at_module_level for i in IMPORTS)
    assert any(i.top == "torch" and i.is_at_module_level and not i.is_for_types for i in IMPORTS)


def test_every_room_has_its_rule() -> None:
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    assert rooms - {*NOUNS, *ROOMS} == set()


def test_imports_go_downwards_only() -> None:
    wrong = []
    for found in IMPORTS:
        if not found.target or found.target in {found.room, "__version__"}:
            continue
        allowed = NOUNS.get(found.room) if found.room in NOUNS else {*NOUNS, *ROOMS[found.room]}
        if found.target not in (allowed or set()):
            wrong.append(found)
    assert shown(wrong) == []


def test_the_rules_themselves_have_no_circle() -> None:
    rules = {**NOUNS, **{room: below | set(NOUNS) for room, below in ROOMS.items()}}
    done: set[str] = set()
    while len(done) < len(rules):
        ready = {r for r, below in rules.items() if r not in done and below <= done}
        assert ready, f"a circle among {sorted(set(rules) - done)}"
        done |= ready


def test_nothing_but_engine_and_bench_calls_the_rooms_of_intake() -> None:
    rooms = {"checkpoint", "architectures", "cleanset", "fit"}
    wrong = [
        i
        for i in IMPORTS
        if i.target in rooms
        and i.room not in {i.target, "engine", "bench"}
        and not i.is_for_types
        # fit takes plain records of the two rooms that it stands between.
        and not (i.room == "fit" and i.target in {"architectures", "cleanset"})
    ]
    assert shown(wrong) == []


def test_the_product_never_imports_bench_or_attacks() -> None:
    wrong = [
        i
        for i in IMPORTS
        if i.target in {"bench", "attacks"} and i.room not in {"cli", "bench", "attacks"}
    ]
    assert shown(wrong) == []


def test_functional_is_pure() -> None:
    allowed = {"torch", "math", "typing", "dataclasses", "collections", "__future__"}
    wrong = [
        i
        for i in IMPORTS
        if i.room == "functional"
        and (i.top not in {*allowed, "modelaudit"} or i.target not in {"", "functional", "errors"})
    ]
    assert shown(wrong) == []


def test_report_sees_results_and_never_models() -> None:
    wrong = [
        i
        for i in IMPORTS
        if i.room == "report"
        and (
            i.top in {"torch", "numpy", "torchvision"}
            or i.target
            not in {"", "__version__", "errors", "report", "repair_results", "results", "text"}
        )
    ]
    assert shown(wrong) == []


def test_scanners_know_neither_files_nor_reports() -> None:
    wrong = [
        i
        for i in IMPORTS
        if i.room in {"scanners", "suspect", "verdict"} and i.top in {"os", "pathlib", "io", "json"}
    ]
    assert shown(wrong) == []


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("typer", {"cli"}),
        ("click", set()),
        # the terminal report and the bars in it
        (
            "rich",
            {
                "cli",
                *(
                    f"report/{name}.py"
                    for name in ("terminal", "evidence", "layout", "repair_terminal")
                ),
            },
        ),
        # bench resumes training from states that it wrote itself; they are no suspect's files.
        ("safetensors", {"checkpoint", "bench"}),
        ("pickle", set()),
        ("dill", set()),
        ("joblib", set()),
        # an .npz of images is a zip archive too
        ("zipfile", {"checkpoint", "cleanset", "bench"}),
        ("tarfile", {"checkpoint"}),
        ("PIL", {"cleanset", "bench"}),
        ("torchvision", {"architectures"}),
        ("socket", set()),
        ("urllib", set()),
        ("requests", set()),
    ],
)
def test_a_package_is_imported_where_it_belongs_alone(package: str, homes: set[str]) -> None:
    wrong = [i for i in IMPORTS if i.top == package and i.room not in homes and i.file not in homes]
    assert shown(wrong) == []


def test_the_core_imports_its_declared_dependencies_alone() -> None:
    import sys

    declared = {"torch", "torchvision", "numpy", "safetensors", "PIL", "typer", "rich"}
    wrong = [i for i in IMPORTS if i.top not in {*declared, "modelaudit", *sys.stdlib_module_names}]
    # the extra `report`
    plots = [i for i in wrong if i.top == "matplotlib" and i.file == "bench/plots.py"]
    assert shown([i for i in plots if i.is_at_module_level and not i.is_for_types]) == []
    assert shown([i for i in wrong if i not in plots]) == []


def test_only_checkpoint_loads_what_torch_saved() -> None:
    loaders = {"load", "jit", "hub", "package", "export", "serialization"}
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_torch = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch"
            if is_torch and isinstance(node, ast.Attribute) and node.attr in loaders:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} uses torch.{node.attr}")
    imported = [i for i in IMPORTS if i.top == "torch" and set(i.name.split(".")[1:]) & loaders]
    assert wrong == []
    assert shown([i for i in imported if i.room != "checkpoint"]) == []


def test_torchvision_is_imported_lazily() -> None:
    wrong = [
        i for i in IMPORTS if i.top == "torchvision" and i.is_at_module_level and not i.is_for_types
    ]
    assert shown(wrong) == []
    assert any(i.top == "torchvision" for i in IMPORTS)


def test_the_command_line_imports_torch_and_the_engine_lazily() -> None:
    heavy = {"torch", "torchvision", "numpy"}
    wrong = [
        i
        for i in IMPORTS
        if i.room in {"cli", "__init__", "report", *NOUNS}
        and (i.top in heavy or i.target == "engine")
        and i.is_at_module_level
        and not i.is_for_types
    ]
    assert shown(wrong) == []


def test_nobody_goes_through_the_packages_own_names() -> None:
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    wrong = [i for i in IMPORTS if i.target and i.target not in {*rooms, "__version__"}]
    assert shown(wrong) == []


def test_every_module_postpones_its_annotations() -> None:
    missing = [
        str(path.relative_to(ROOT))
        for path in FILES
        if len(ast.parse(path.read_text(encoding="utf-8")).body) > 1
        and "from __future__ import annotations" not in path.read_text(encoding="utf-8")
    ]
    assert missing == []


def test_modules_stay_short() -> None:
    longest = {str(p.relative_to(ROOT)): len(p.read_text("utf-8").splitlines()) for p in FILES}
    assert {name: n for name, n in longest.items() if n > 400} == {}


def test_a_forbidden_import_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(imports_of.__globals__, "ROOT", tmp_path)
    path = tmp_path / "scanners" / "evil.py"
    path.parent.mkdir()
    path.write_text(
        "import torch\n"
        "from modelaudit.bench import train\n"
        "from .base import Scanner\n"
        "if TYPE_CHECKING:\n    from modelaudit.engine import scan\n"
        "def f():\n    import torchvision.models\n"
    )
    found = {i.name: (i.target, i.is_at_module_level, i.is_for_types) for i in imports_of(path)}
    assert found == {
        "torch": ("", True, False),
        "modelaudit.bench.train": ("bench", True, False),
        "modelaudit.scanners.base.Scanner": ("scanners", True, False),
        "modelaudit.engine.scan": ("engine", True, True),
        "torchvision.models": ("", False, False),
    }
