"""The first step of the command line: arguments become the job that they ask for."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import typer

from modelaudit.cli.app import app
from modelaudit.cli.jobs import Job
from modelaudit.cli.streams import silence
from modelaudit.results import ExitStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Startup(Job):
    """Nothing is known yet but the arguments.

    Attributes:
        arguments: what follows the program's name.
    """

    arguments: tuple[str, ...]

    @property
    def is_debug(self) -> bool:
        """Whether ``--debug`` stands anywhere; the options could not be parsed."""
        return "--debug" in self.arguments

    def run(self) -> int | Job:
        """Return what the arguments ask for; ``--help`` and ``--version`` print at once."""
        command = typer.main.get_command(app)
        result = command.main(
            args=list(self.arguments), prog_name="modelaudit", standalone_mode=False
        )
        return result if isinstance(result, Job) else int(result or 0)

    def fail(self, error: BaseException) -> int:
        """Say what is wrong with the arguments.

        Typer leaves with status 1 when the reader of ``--help`` closes the pipe: no failure.
        """
        if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
            silence(sys.__stdout__ or sys.stdout)
            return ExitStatus.CLEAN
        return Job.fail(self, error)
