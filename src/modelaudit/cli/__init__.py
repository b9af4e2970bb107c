"""The command line: ``modelaudit scan``, ``modelaudit list``.

Nothing here imports torch before a command needs it: ``--help`` and usage errors answer at once.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from modelaudit.cli.jobs import Job
from modelaudit.cli.outcome import Terminated
from modelaudit.cli.startup import Startup
from modelaudit.cli.streams import complain
from modelaudit.results import ExitStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "run"]


def main() -> NoReturn:
    """Run the command line of this process and exit with its status."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Typer only parses: the work happens outside of it, because it would turn an interruption or a
    closed pipe into statuses of its own, and 1 must mean "backdoored" and nothing else.

    Args:
        arguments: what follows the program's name.

    Returns:
        The exit status, by the table of docs/cli.md.
    """
    job: Job = Startup(arguments=tuple(arguments))
    try:
        result = job.run()
        while isinstance(result, Job):
            job = result
            result = job.run()
    except BaseException as error:  # noqa: BLE001 - whatever happens has an exit status and one sentence
        try:
            return job.fail(error)
        except BaseException as second:  # noqa: BLE001 - even a failure that cannot be reported is never 1
            complain(f"internal error: {type(second).__name__}: {second}")
            return ExitStatus.BUG
    else:
        return result


def _terminate(signum: int, frame: object) -> NoReturn:  # noqa: ARG001 - a signal handler's signature
    raise Terminated
