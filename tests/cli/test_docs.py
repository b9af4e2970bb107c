from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import modelaudit

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLI_PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
REPAIR_PAGE = (ROOT / "docs" / "repair.md").read_text(encoding="utf-8")


def block(text: str, marker: str) -> str:
    """Return the fenced block that follows the marker."""
    found = re.search(rf"{re.escape(marker)}\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found.group(1)


def help_of(*command: str) -> str:
    """Return the help at 80 columns."""
    code = "from modelaudit.cli import main; main()"
    paths = [str(Path(modelaudit.__file__).parents[1]), str(ROOT)]
    environment = {**os.environ, "COLUMNS": "80", "PYTHONPATH": os.pathsep.join(paths)}
    result = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        timeout=60,
    )
    return result.stdout


def test_the_readme_shows_the_help_of_scan() -> None:
    assert block(README, "<!-- modelaudit scan --help -->") == help_of("scan")


def test_the_repair_page_shows_the_help_of_repair() -> None:
    assert block(REPAIR_PAGE, "<!-- modelaudit repair --help -->") == help_of("repair")


def test_the_cli_page_shows_the_help() -> None:
    assert block(CLI_PAGE, "# The command line\n") == help_of()


@pytest.mark.parametrize("page", [README, CLI_PAGE])
def test_the_pages_list_every_exit_status(page: str) -> None:
    table = page[page.index("| Status |") :]
    listed = {
        int(n)
        for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
        for n in row.split(", ")
    }
    assert listed == {0, 1, 2, 3, 4, 5, 6, 70, 130, 143}


def test_the_cli_page_explains_only_options_that_exist() -> None:
    options = set(re.findall(r"^\| `(--[a-z-]+)", CLI_PAGE, re.MULTILINE))
    assert options <= set(re.findall(r"--[a-z-]+", help_of("scan")))


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("status", "report", "said", "is_moved"),
    [
        (0, "{}", "admitted: model.pt", False),
        (1, '{"verdict": "backdoored", "target_labels": [3, 7]}', "target labels: 3 7", True),
        (
            1,
            '{"verdict": "backdoored", "target_labels": [], "pattern": "all_to_all"}',
            "backdoored, pattern: all_to_all",
            True,
        ),
        (3, "{}", "refused:", True),
        (4, "{}", "no verdict", False),
        (5, "{}", "no verdict", False),
        (70, "{}", "", False),
    ],
)
def test_the_readmes_pipeline_acts_on_every_status(
    tmp_path: Path, status: int, report: str, said: str, is_moved: bool
) -> None:
    result = run_pipeline(tmp_path, status, report)
    assert result.returncode == status
    assert said in result.stdout
    assert (tmp_path / "quarantine" / "model.pt").exists() is is_moved
    assert (tmp_path / "model.pt").exists() is not is_moved
    assert bool(result.stderr) is (status == 70)


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")
@pytest.mark.parametrize("report", ["", '{"verdict": "clean", "target_labels": []}'])
def test_the_pipeline_takes_no_broken_installation_for_a_backdoor(
    tmp_path: Path, report: str
) -> None:
    # Python itself ends with 1 where a package cannot be imported; an older report is no evidence.
    (tmp_path / "report.json").write_text('{"verdict": "backdoored", "target_labels": [1]}')
    result = run_pipeline(tmp_path, 1, report)
    assert result.returncode == 70
    assert (tmp_path / "model.pt").exists()


def run_pipeline(tmp_path: Path, status: int, report: str) -> subprocess.CompletedProcess[str]:
    """Run the README's script beside a command that ends so; it writes no empty report."""
    (tmp_path / "intake.sh").write_text(block(README, "<!-- intake.sh -->"))
    stub = tmp_path / "bin" / "modelaudit"
    stub.parent.mkdir()
    stub.write_text(
        '#!/bin/sh\nwhile [ "$1" != --output ]; do shift; done\n'
        f'{f"echo {shlex.quote(report)} > " if report else ": "}"$2"\nexit {status}\n'
    )
    stub.chmod(0o755)
    (stub.parent / "python3").symlink_to(sys.executable)
    (tmp_path / "model.pt").write_bytes(b"weights")
    return subprocess.run(
        ["sh", "intake.sh", "model.pt", "clean"],
        cwd=tmp_path,
        env={"PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
