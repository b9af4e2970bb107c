"""Every exception that modelaudit raises on purpose.

::

    ModelAuditError
    ├─ ConfigError                     an option is out of range or unknown
    ├─ CheckpointError
    │  ├─ UnsafeCheckpointError        would execute code, is ambiguous, or hides what it is
    │  ├─ CorruptCheckpointError       missing, damaged, over a limit, or not a checkpoint
    │  └─ UnknownArchitectureError     no registered architecture fits
    ├─ DataError                       folder, image or label problem
    ├─ TooFewImagesError               too few clean images to tell how the model is run
    ├─ FitError                        no unambiguous way to run the model on the clean set
    ├─ ShapeError, DtypeError          a tensor is not what the function takes
    ├─ ScannerError
    │  └─ DegenerateStatisticError     zero spread, one class, constant scores
    ├─ BudgetExceededError             the time that was left would not have sufficed
    ├─ RepairError
    │  └─ UnmetNeedError               the repair needs something that model or images lack
    ├─ OutputError                     the result could not be written
    └─ PluginError                     an entry point cannot be used

Messages say what was expected, what was found and what to do; lower case, no full stop. `code` is
the stable machine-readable name that JSON reports carry in ``reason.code``.
"""

from __future__ import annotations

from typing import ClassVar


class ModelAuditError(Exception):
    """Base of all errors raised on purpose."""

    code: ClassVar[str] = "MA-X000"


class ConfigError(ModelAuditError):
    """An option or configuration field has no valid value."""

    code = "MA-C001"


class CheckpointError(ModelAuditError):
    """Base of everything that is wrong with a checkpoint file."""

    code = "MA-K000"


class UnsafeCheckpointError(CheckpointError):
    """The file would execute code, is ambiguous on purpose, or hides what it is (exit status 3)."""

    code = "MA-S103"


class CorruptCheckpointError(CheckpointError):
    """The file is missing, damaged, over a limit, or not a checkpoint (exit status 4)."""

    code = "MA-K104"


class UnknownArchitectureError(CheckpointError):
    """No registered architecture has these key names and shapes (exit status 4).

    Attributes:
        closest: up to three lines, each an architecture's name with its first differing keys and
            shapes.
    """

    code = "MA-A104"

    def __init__(self, message: str, closest: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.closest = closest


class DataError(ModelAuditError):
    """The clean set cannot be used: folder, image or label problem (exit status 4)."""

    code = "MA-D104"


class TooFewImagesError(ModelAuditError):
    """The clean set is too small for a verdict, and for telling how to run the model (status 5)."""

    code = "MA-V501"


class FitError(ModelAuditError):
    """The clean set and the model do not determine how to run the model (exit status 4)."""

    code = "MA-F104"


class ShapeError(ModelAuditError, ValueError):
    """A tensor has another shape than the function takes."""

    code = "MA-T001"


class DtypeError(ModelAuditError, TypeError):
    """A tensor has another dtype than the function takes."""

    code = "MA-T002"


class ScannerError(ModelAuditError):
    """A scanner could not finish; the engine lists it as failed."""

    code = "MA-R005"


class DegenerateStatisticError(ScannerError):
    """A statistic is undefined: zero spread, one class, constant scores."""

    code = "MA-R006"


class BudgetExceededError(ScannerError):
    """The time budget ended before a scanner did; the engine lists it as skipped."""

    code = "MA-R007"


class RepairError(ModelAuditError):
    """A repair could not finish, or claims what it did not do."""

    code = "MA-E005"


class UnmetNeedError(RepairError):
    """The repair needs something that the model or the clean images lack (exit status 5)."""

    code = "MA-E501"


class OutputError(ModelAuditError):
    """The result could not be written (exit status 6)."""

    code = "MA-O006"


class PluginError(ModelAuditError):
    """An entry point cannot be imported, or two distributions claim one id."""

    code = "MA-P001"
