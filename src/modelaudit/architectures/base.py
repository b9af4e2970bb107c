"""What an architecture family is: it reads names and shapes and proposes modules that have them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from modelaudit.weights import Weights

#: A constructor argument, kept for reports and model cards.
Argument = bool | int | float | str | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One module that the weights may belong to.

    Attributes:
        name: short name such as ``"cifar_resnet18"``; what ``--arch`` takes and reports show.
        family: id of the family that proposed it.
        arguments: the constructor arguments that were read off the shapes (depth, width, ...).
        build: makes the module with its own random weights; called under ``torch.device("meta")``
            too.
        input_channels: channels of the input image.
        num_classes: outputs K.
        input_sizes: plausible square input sizes in pixels, most plausible first.
        rename: maps a key of the file to the module's key; identity for nearly all families.
        is_only_by_name: offered only where ``--arch`` names it: a variant of which no release is
            known, and which the clean set could often not tell from the usual one.
        notes: what was assumed beyond names and shapes, in words for the report.
    """

    name: str
    family: str
    arguments: Mapping[str, Argument]
    build: Callable[[], nn.Module]
    input_channels: int
    num_classes: int
    input_sizes: tuple[int, ...]
    rename: Callable[[str], str] = field(default=str)
    is_only_by_name: bool = False
    notes: tuple[str, ...] = ()


class ArchitectureFamily(ABC):
    """Proposes the modules of one family for a set of named tensors.

    Third parties subclass this and register it in the entry-point group
    ``modelaudit.architectures``.
    """

    #: stable id, equal to the entry point's name
    id: ClassVar[str]
    #: one line for ``modelaudit list`` and error messages
    summary: ClassVar[str]
    #: where the architecture is described
    reference: ClassVar[str]
    #: a fallback is asked only where no other family fits exactly: it infers what the others know
    is_fallback: ClassVar[bool] = False

    @abstractmethod
    def propose(self, weights: Weights) -> Iterable[Candidate]:
        """Yield candidates, best first, judged by key names, shapes and hints alone.

        A proposal need not match exactly: `modelaudit.architectures.identify` checks every key and
        shape and uses near misses to explain a refusal.
        """

    @abstractmethod
    def names(self) -> Iterable[str]:
        """Yield every name that `propose` can use, for ``--arch NAME`` and error messages."""

    def examples(self) -> Iterable[Candidate]:
        """Yield members as published, the commonest first; none by default.

        A refusal compares the file with the first, or with the one that ``--arch`` names.
        """
        return ()
