"""What an exception means at the command line: verdict word, sentence, exit status."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from modelaudit.errors import ConfigError, ModelAuditError, OutputError, PluginError
from modelaudit.results import ExitStatus, Verdict

#: Exit status of a process that was asked to end by SIGTERM (128 + 15).
TERMINATED_STATUS = 143

#: What Typer raises while parsing: its own Click's class or the real one's, as its versions go.
_ParseError = typer.BadParameter.__mro__[1]


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; handled as Ctrl-C is, with an exit status of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a command that did not finish ends.

    Attributes:
        verdict: the word of a JSON report.
        code: its ``reason.code``.
        message: its ``reason.message``.
        exit_status: of the process.
    """

    verdict: Verdict
    code: str
    message: str
    exit_status: int


def outcome_of(error: BaseException) -> Outcome:
    """Return the outcome of an exception that came before or outside of the engine.

    Whatever modelaudit does not raise on purpose is a bug: it never gets status 1.
    """
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        is_asked = isinstance(error, Terminated)
        return Outcome(
            verdict=Verdict.INTERRUPTED,
            code="MA-E130",
            message="terminated" if is_asked else "interrupted",
            exit_status=TERMINATED_STATUS if is_asked else ExitStatus.INTERRUPTED,
        )
    if isinstance(error, OutputError):
        return Outcome(
            verdict=Verdict.ERROR,
            code=error.code,
            message=str(error),
            exit_status=ExitStatus.OUTPUT_FAILED,
        )
    if isinstance(error, ConfigError | PluginError):
        return _usage(error.code, str(error))
    if isinstance(error, _ParseError):
        return _usage(ConfigError.code, _parse_message(error))
    code = error.code if isinstance(error, ModelAuditError) else "MA-E070"
    return Outcome(
        verdict=Verdict.ERROR,
        code=code,
        message=f"{type(error).__name__}: {error}",
        exit_status=ExitStatus.BUG,
    )


def _usage(code: str, message: str) -> Outcome:
    return Outcome(verdict=Verdict.USAGE, code=code, message=message, exit_status=ExitStatus.USAGE)


def _parse_message(error: BaseException) -> str:
    """Bring Typer's sentence into the form of ours, with the command whose help would settle it."""
    format_message = getattr(error, "format_message", error.__str__)
    message = str(format_message()).strip().rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "modelaudit"
    return f'{message[:1].lower()}{message[1:]}; see "{command} --help"'
