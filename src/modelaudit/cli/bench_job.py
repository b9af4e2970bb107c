"""How a command of ``modelaudit bench`` ends when it cannot go on."""

from __future__ import annotations

from modelaudit.cli.jobs import Job
from modelaudit.errors import CheckpointError, DataError
from modelaudit.results import ExitStatus


class BenchJob(Job):
    """A job that reads data and checkpoints itself: what it cannot read is no bug."""

    def fail(self, error: BaseException) -> int:
        """Say what ended the command; status 4 for data and files that cannot be read."""
        if isinstance(error, DataError | CheckpointError):
            self.explain(error, str(error), ExitStatus.UNREADABLE)
            return ExitStatus.UNREADABLE
        return super().fail(error)
