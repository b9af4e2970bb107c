"""What a command does once its options are parsed, and how it ends when it cannot."""

from __future__ import annotations

import sys
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass

from modelaudit.cli.outcome import outcome_of
from modelaudit.cli.streams import complain, silence, write_stderr
from modelaudit.results import ExitStatus


class Job(ABC):
    """One step of the command line; Typer's functions return one and do no work themselves."""

    @property
    @abstractmethod
    def is_debug(self) -> bool:
        """Whether a failure shows its traceback."""

    @abstractmethod
    def run(self) -> int | Job:
        """Do the work and return the exit status, or the step that follows."""

    def fail(self, error: BaseException) -> int:
        """Say on stderr what ended the command, and return the exit status."""
        outcome = outcome_of(error)
        self.explain(error, outcome.message, outcome.exit_status)
        return outcome.exit_status

    def explain(self, error: BaseException | None, message: str, exit_status: int) -> None:
        """Write the one sentence, and with ``--debug`` the traceback before it."""
        if error is not None and self.is_debug:
            write_stderr("".join(traceback.format_exception(error)))
        if exit_status == ExitStatus.BUG:
            advice = "report the trace" if self.is_debug else "run again with --debug and report it"
            message = f"internal error: {message}; this is a bug in modelaudit, {advice}"
        complain(message)


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
        import typer

        from modelaudit.cli.app import app

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
