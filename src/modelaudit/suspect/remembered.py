"""Predicts the same images under one edit after another, computing what no edit reaches once.

What happens before the first edited layer is the same under every edit. The first pass notes,
operation by operation, what is computed before that layer, and keeps the few tensors of it that are
used from there on; later passes skip those operations. Nothing else changes: batches, kernels and
results are those of a whole pass, bit for bit.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from torch import nn

    from modelaudit.suspect.edits import SiteEdit
    from modelaudit.suspect.suspect import Suspect

#: Bytes that may be kept; batches beyond are passed whole every time.
_MAX_BYTES = 2**28


class RememberedImages:
    """Images that are predicted again and again under different edits.

    Args:
        suspect: its weights and buffers must not change meanwhile.
        images: ``(N, C, H, W)`` in [0, 1].
        batch_size: images computed together.
        max_bytes: most that is kept in memory.
    """

    def __init__(
        self, suspect: Suspect, images: Tensor, *, batch_size: int, max_bytes: int = _MAX_BYTES
    ) -> None:
        self._suspect = suspect
        self._batches = images.split(batch_size)
        self._max_bytes = max_bytes
        self._order = {site.name: i for i, site in enumerate(suspect.sites)}
        #: index of the site before which all is remembered; None before anything is
        self._start: int | None = None
        self._tapes: list[_Tape | None] = []

    def predict(self, edits: Mapping[str, SiteEdit]) -> Tensor:
        """Return the classes under `edits`, ``(N,)`` int64 on the CPU, as `Suspect.predict`.

        Counted as whole passes.
        """
        with self._suspect.edited(edits):
            parts = [self._batch(i, edits) for i in range(len(self._batches))]
        return torch.cat(parts)

    def _batch(self, index: int, edits: Mapping[str, SiteEdit]) -> Tensor:
        # On a GPU it is the calls that take the time, not the work that they start.
        if not edits or self._suspect.device.type != "cpu":
            return self._pass(index)
        first = min(self._order[name] for name in edits)
        if index == 0 and (self._start is None or first < self._start):
            self._start = first
            self._tapes.clear()
        if index == len(self._tapes):
            predicted, tape = self._record(index)
            self._tapes.append(tape)
            return predicted
        tape = self._tapes[index]
        return self._pass(index) if tape is None else self._replay(index, tape)

    def _pass(self, index: int) -> Tensor:
        batch = self._batches[index]
        return self._suspect.predict(batch, batch_size=len(batch))

    def _record(self, index: int) -> tuple[Tensor, _Tape | None]:
        kept = sum(tape.size for tape in self._tapes if tape is not None)
        if kept > self._max_bytes or None in self._tapes:
            return self._pass(index), None
        recorder = _Recorder()
        with recorder, self._reaching(recorder):
            predicted = self._pass(index)
        tape = recorder.tape()
        return predicted, tape if tape and kept + tape.size <= self._max_bytes else None

    def _replay(self, index: int, tape: _Tape) -> Tensor:
        player = _Player(tape)
        counted = self._suspect.passes.forward
        try:
            with player, self._reaching(player):
                return self._pass(index)
        except _OtherWayError:
            # The module took another way than before: its code depends on what it computes.
            self._suspect.passes.forward = counted
            self._tapes[index] = None
            return self._pass(index)

    @contextmanager
    def _reaching(self, mode: _Mode) -> Generator[None]:
        assert self._start is not None
        layer = self._suspect.module.get_submodule(self._suspect.sites[self._start].name)

        def reached(_module: nn.Module, _inputs: object) -> None:
            mode.reached()

        handle = layer.register_forward_pre_hook(reached)
        try:
            yield
        finally:
            handle.remove()


class _OtherWayError(Exception):
    """A pass does not do what the recorded one did."""


@dataclass(frozen=True, slots=True)
class _Made:
    """One output of a skipped operation.

    Attributes:
        stand_in: a tensor like it on the device "meta", which has no values; None for an output
            that is none.
        argument: position of the argument that the operation returned changed, or None.
        value: what is used later, or None.
    """

    stand_in: Tensor | None = None
    argument: int | None = None
    value: Tensor | None = None


@dataclass(slots=True)
class _Step:
    """One operation before the layer."""

    operator: object
    is_single: bool
    made: list[_Made] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Tape:
    """The operations of one batch before the layer, with what is used after."""

    steps: tuple[_Step, ...]

    @property
    def size(self) -> int:
        """Bytes of what is kept."""
        values = (one.value for step in self.steps for one in step.made)
        return sum(value.nbytes for value in values if value is not None)


def _tensors(arguments: object) -> Iterator[Tensor]:
    if isinstance(arguments, Tensor):
        yield arguments
    elif isinstance(arguments, list | tuple):
        for one in arguments:
            yield from _tensors(one)


class _Mode(TorchDispatchMode):
    """Sees every operation until the layer is reached, and after."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it so
        self.is_reached = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here; otherwise torch loads its compiler first, which takes seconds.
        return False

    def reached(self) -> None:
        """Say that the layer is reached; what it calls comes after."""
        self.is_reached = True


class _Recorder(_Mode):
    """Runs every operation, and notes those before the layer and what is used of them after."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[_Step] = []
        self._is_possible = True
        # By identity: the Python object of a tensor is one and the same as long as it lives.
        self._origins: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        self._storages: dict[int, Tensor] = {}

    def tape(self) -> _Tape | None:
        """Return what was recorded, or None where skipping it would not be the same."""
        return _Tape(tuple(self._steps)) if self._is_possible and self.is_reached else None

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.is_reached:
            for tensor in _tensors([*args, *kwargs.values()]):
                self._keep(tensor)
            return func(*args, **kwargs)
        is_own = all(self._origin(tensor) for tensor in _tensors(args[:1]))
        if func._schema.is_mutable and not is_own:
            # It changes what the module or the caller holds.
            self._is_possible = False
        outputs = func(*args, **kwargs)
        self._note(func, args, outputs)
        return outputs

    def _origin(self, tensor: Tensor) -> tuple[int, int] | None:
        found = self._origins.get(id(tensor))
        return found[1:] if found is not None and found[0]() is tensor else None

    def _note(self, func: object, args: Sequence[Any], outputs: Any) -> None:
        step = _Step(func, is_single=not isinstance(outputs, list | tuple))
        for output in (outputs,) if step.is_single else outputs:
            if output is None:
                step.made.append(_Made())
                continue
            if not isinstance(output, Tensor):
                # A number: what it decides must not be decided without it.
                self._is_possible = False
                return
            same = [i for i, argument in enumerate(args) if argument is output]
            stand_in = torch.empty_strided(
                output.shape, output.stride(), dtype=output.dtype, device="meta"
            )
            step.made.append(_Made(stand_in, same[0] if same else None))
            if not same:
                place = (len(self._steps), len(step.made) - 1)
                self._origins[id(output)] = (weakref.ref(output), *place)
        self._steps.append(step)

    def _keep(self, tensor: Tensor) -> None:
        origin = self._origin(tensor)
        if origin is None:
            return
        index, output = origin
        made = self._steps[index].made
        if made[output].value is not None:
            return
        # Two views of one memory would no longer change together.
        storage = tensor.untyped_storage().data_ptr()
        if storage in self._storages:
            self._is_possible = False
            return
        self._storages[storage] = tensor
        made[output] = replace(made[output], value=tensor.clone())


class _Player(_Mode):
    """Skips the operations of a tape, and runs those that follow."""

    def __init__(self, tape: _Tape) -> None:
        super().__init__()
        self._steps = tape.steps
        self._at = 0
        #: what was handed out in place of skipped outputs, by identity
        self._stand_ins: dict[int, Tensor] = {}

    def reached(self) -> None:
        if not self.is_reached and self._at != len(self._steps):
            raise _OtherWayError
        super().reached()

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.is_reached:
            if any(id(t) in self._stand_ins for t in _tensors([*args, *kwargs.values()])):
                raise _OtherWayError
            return func(*args, **kwargs)
        if self._at == len(self._steps) or func is not self._steps[self._at].operator:
            raise _OtherWayError
        step = self._steps[self._at]
        self._at += 1
        outputs = [self._output(one, args) for one in step.made]
        return outputs[0] if step.is_single and outputs else tuple(outputs)

    def _output(self, made: _Made, args: Sequence[Any]) -> Any:
        if made.argument is not None:
            return args[made.argument]
        if made.value is not None:
            # Operations that follow may change it in place.
            return made.value.clone()
        if made.stand_in is None:
            return None
        # Memory that nothing touches costs nothing; it is laid out as the output is, which decides
        # what torch does next. New each time: torch notes on a tensor of which it is a view.
        like = made.stand_in
        output = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
        self._stand_ins[id(output)] = output
        return output
