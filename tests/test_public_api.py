from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import modelaudit

SOURCE = Path(modelaudit.__file__)


def imported_for_types() -> dict[str, str]:
    """Name to module of the imports that type checkers see."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    guarded = next(n for n in tree.body if isinstance(n, ast.If))
    return {
        alias.name: str(node.module)
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_list_of_names_is_sorted_and_has_no_duplicates() -> None:
    assert modelaudit.__all__ == sorted(set(modelaudit.__all__))


def test_every_listed_name_is_exported_and_nothing_else() -> None:
    exported: dict[str, object] = {}
    exec("from modelaudit import *", exported)
    del exported["__builtins__"]
    assert sorted(exported) == modelaudit.__all__


@pytest.mark.parametrize("name", [n for n in modelaudit.__all__ if n != "__version__"])
def test_a_name_is_what_its_module_defines(name: str) -> None:
    home = importlib.import_module(imported_for_types()[name])
    assert getattr(modelaudit, name) is getattr(home, name)
    assert getattr(modelaudit, name).__doc__


def test_type_checkers_see_the_same_names() -> None:
    assert sorted([*imported_for_types(), "__version__"]) == modelaudit.__all__


def test_the_names_are_shown_to_whoever_looks() -> None:
    assert set(modelaudit.__all__) <= set(dir(modelaudit))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'modelaudit' has no attribute 'sacn'"):
        _ = modelaudit.sacn  # type: ignore[attr-defined]  # on purpose


def test_the_version_is_the_distributions() -> None:
    assert modelaudit.__version__ == version("modelaudit")


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_importing_the_package_imports_no_torch() -> None:
    heavy = "{'torch', 'numpy', 'rich', 'typer'}"
    code = f"import sys, modelaudit; dir(modelaudit); print(sorted({heavy} & set(sys.modules)))"
    assert run_python(code) == "[]"


def test_importing_every_name_imports_neither_torchvision_nor_what_the_product_never_uses() -> None:
    unwanted = "{'torchvision', 'typer', 'rich', 'modelaudit.bench', 'modelaudit.attacks'}"
    code = f"import sys\nfrom modelaudit import *\nprint(sorted({unwanted} & set(sys.modules)))"
    assert run_python(code) == "[]"
