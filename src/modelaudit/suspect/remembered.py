"""Predicts the same images under one edit after another, computing what no edit reaches once.

What happens before the first edited layer is the same under every edit. The first pass notes,
operation by operation, what is computed before that layer, and keeps the few tensors of it that are
used from there on; later passes skip those operations. Batches, kernels and results are those of a
whole pass, bit for bit, which is checked once; where they are not, every pass is whole.
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
        """Return the classes under `edits`, ``(N,)`` int64 on the CPU, as `Suspect.predict`."""
        return self.logits(edits).argmax(1).cpu()

    def logits(self, edits: Mapping[str, SiteEdit]) -> Tensor:
        """Return float32 logits under `edits`, ``(N, K)``; counted as whole passes."""
        with self._suspect.edited(edits):
            return torch.cat([self._batch(i, edits) for i in range(len(self._batches))])

    def _batch(self, index: int, edits: Mapping[str, SiteEdit]) -> Tensor:
        # On a GPU it is the calls that take the time, not the work that they start.
        if not edits or self._suspect.device.type != "cpu":
            return self._whole(index)
        first = min(self._order[name] for name in edits)
        if index == 0 and (self._start is None or first < self._start):
            self._start = first
            self._tapes.clear()
        if index == len(self._tapes):
            logits, tape = self._record(index)
            self._tapes.append(tape)
            return logits
        tape = self._tapes[index]
        replayed = None if tape is None else self._replay(index, tape)
        return self._whole(index) if replayed is None else replayed

    def _whole(self, index: int) -> Tensor:
        with torch.no_grad():
            return self._suspect.logits(self._batches[index])

    def _record(self, index: int) -> tuple[Tensor, _Tape | None]:
        kept = sum(tape.size for tape in self._tapes if tape is not None)
        if kept >= self._max_bytes or None in self._tapes:
            return self._whole(index), None
        recorder = _Recorder()
        with recorder, self._reaching(recorder):
            logits = self._whole(index)
        tape = recorder.tape()
        if tape is None or kept + tape.size > self._max_bytes:
            return logits, None
        # What leaves torch unseen, as `tolist` does, would be not-a-number from now on.
        counted = self._suspect.passes.forward
        again = self._replay(index, tape)
        self._suspect.passes.forward = counted
        return logits, tape if again is not None and torch.equal(again, logits) else None

    def _replay(self, index: int, tape: _Tape) -> Tensor | None:
        """Return the logits, or None if the module takes another way than it took before."""
        player = _Player(tape)
        counted = self._suspect.passes.forward
        try:
            with player, self._reaching(player):
                return self._whole(index)
        except _OtherWayError:
            self._suspect.passes.forward = counted
            return None

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
        like: a tensor laid out like it on the device "meta", which has no values; None for an
            output that is none.
        argument: position of the argument that the operation returned changed, or None.
        value: what is used later, or None.
    """

    like: Tensor | None = None
    argument: int | None = None
    value: Tensor | None = None


@dataclass(slots=True)
class _Step:
    """One operation before the layer."""

    operator: object
    is_single: bool
    made: list[_Made] = field(default_factory=list)


class _Tape:
    """The operations of one batch before the layer, with what is used after.

    Args:
        steps: the operations in their order.

    Attributes:
        size: bytes of what is kept.
    """

    def __init__(self, steps: Sequence[_Step]) -> None:
        self.steps = tuple(steps)
        made = [one for step in steps for one in step.made]
        self.size = sum(one.value.nbytes for one in made if one.value is not None)
        # All that is skipped stands on the same few bytes: what they hold must never count.
        spans: dict[torch.dtype, int] = {}
        for one in made:
            if one.like is not None and one.value is None:
                spans[one.like.dtype] = max(spans.get(one.like.dtype, 1), _span(one.like))
        self._ground = {dtype: _nothing(dtype, span) for dtype, span in spans.items()}

    def stand_in(self, like: Tensor) -> Tensor:
        """Return a tensor laid out as the output is, which decides what torch does next."""
        return self._ground[like.dtype].as_strided(like.shape, like.stride())


def _span(like: Tensor) -> int:
    """Return how many numbers there are from the first to the last of a tensor."""
    if not like.numel():
        return 1
    return 1 + sum((n - 1) * step for n, step in zip(like.shape, like.stride(), strict=True))


def _nothing(dtype: torch.dtype, count: int) -> Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.full((count,), torch.nan, dtype=dtype)
    largest = 1 if dtype is torch.bool else torch.iinfo(dtype).max
    return torch.full((count,), largest, dtype=dtype)


def _tensors(arguments: object) -> Iterator[Tensor]:
    if isinstance(arguments, Tensor):
        yield arguments
    elif isinstance(arguments, list | tuple):
        for one in arguments:
            yield from _tensors(one)


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Return the arguments that an operation changes."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            yield from _tensors(given)


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
        #: memory that the recorded operations have taken themselves
        self._own: set[int] = set()
        self._kept: set[int] = set()

    def tape(self) -> _Tape | None:
        """Return what was recorded, or None where skipping it would not be the same."""
        return _Tape(self._steps) if self._is_possible and self.is_reached else None

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors([*args, *kwargs.values()]))
        if self.is_reached:
            for tensor in given:
                self._keep(tensor)
            return func(*args, **kwargs)
        if not all(_storage(tensor) in self._own for tensor in _written(func, args, kwargs)):
            # It changes what the module or the caller holds.
            self._is_possible = False
        known = {_storage(tensor) for tensor in given}
        outputs = func(*args, **kwargs)
        self._own |= {_storage(tensor) for tensor in _tensors(outputs)} - known
        self._note(func, args, outputs)
        return outputs

    def _note(self, func: object, args: Sequence[Any], outputs: Any) -> None:
        step = _Step(func, is_single=not isinstance(outputs, list | tuple))
        for output in (outputs,) if step.is_single else outputs:
            if output is None:
                step.made.append(_Made())
                continue
            if not isinstance(output, Tensor) or not _is_plain(output):
                # A number, say: what it decides must not be decided without it.
                self._is_possible = False
                return
            same = [i for i, argument in enumerate(args) if argument is output]
            like = torch.empty_strided(
                output.shape, output.stride(), dtype=output.dtype, device="meta"
            )
            step.made.append(_Made(like, same[0] if same else None))
            if not same:
                place = (len(self._steps), len(step.made) - 1)
                self._origins[id(output)] = (weakref.ref(output), *place)
        self._steps.append(step)

    def _keep(self, tensor: Tensor) -> None:
        origin = self._origins.get(id(tensor))
        if origin is None or origin[0]() is not tensor:
            return
        _, index, output = origin
        made = self._steps[index].made
        if made[output].value is not None:
            return
        value = tensor.clone()
        storage = _storage(tensor)
        # Two views of one memory would no longer change together.
        if storage in self._kept or value.stride() != tensor.stride():
            self._is_possible = False
            return
        self._kept.add(storage)
        made[output] = replace(made[output], value=value)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if _is_plain(tensor) else -1


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    )


class _Player(_Mode):
    """Skips the operations of a tape, and runs those that follow."""

    def __init__(self, tape: _Tape) -> None:
        super().__init__()
        self._tape = tape
        self._at = 0
        #: what was handed out in place of skipped outputs, by identity
        self._stand_ins: dict[int, Tensor] = {}

    def reached(self) -> None:
        """Raise an error if the way to the layer was not the recorded one."""
        if not self.is_reached and self._at != len(self._tape.steps):
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
        steps = self._tape.steps
        if self._at == len(steps) or func is not steps[self._at].operator:
            raise _OtherWayError
        step = steps[self._at]
        self._at += 1
        outputs = [self._output(one, args) for one in step.made]
        return outputs[0] if step.is_single and outputs else tuple(outputs)

    def _output(self, made: _Made, args: Sequence[Any]) -> Any:
        if made.argument is not None:
            return args[made.argument]
        if made.value is not None:
            # Operations that follow may change it in place.
            return made.value.clone()
        if made.like is None:
            return None
        # A new one each time: torch notes on a tensor of which other it is a view.
        output = self._tape.stand_in(made.like)
        self._stand_ins[id(output)] = output
        return output
