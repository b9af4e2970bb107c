"""What a command does once its options are parsed, and how it ends when it cannot."""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod

from modelaudit.cli.outcome import outcome_of
from modelaudit.cli.streams import complain, write_stderr
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
