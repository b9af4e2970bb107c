"""Runs one way to use a model on some of the clean images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from modelaudit.errors import FitError
from modelaudit.fit.crops import TrainingCrop, crops_for, training_crops
from modelaudit.fit.work import multiply_adds
from modelaudit.functional.divergence import gaussian_kl, pooled_moments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from modelaudit.architectures.base import Candidate
    from modelaudit.cleanset import CleanSet
    from modelaudit.preprocessing import Preprocessing

#: How many stacks of resized images, and how many modules, are kept.
_KEPT_INPUTS = 4
_KEPT_MODULES = 4

#: A crop is named when plain images diverge at least this many times as much.
_CLEAR_RATIO = 2.0

#: Activations are converted to float64 in pieces of this many elements, which a cache holds.
_PIECE_ELEMENTS = 2**19


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """One way to run the model.

    Attributes:
        candidate: index of the architecture.
        input_size: side of the square input, pixels.
        preprocessing: normalisation with one value per input channel.
    """

    candidate: int
    input_size: int
    preprocessing: Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predicted:
    """What a hypothesis says of some images.

    Attributes:
        outputs: most probable output per image. Shape ``(N,)``, int64.
        confidence: softmax of that output. Shape ``(N,)``, float64, in (0, 1].
    """

    outputs: np.ndarray
    confidence: np.ndarray


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """How well the first BatchNorm layer's statistics fit the clean images.

    Attributes:
        divergence: lowest median divergence over the usual training crops, nats.
        crop: the crop that gives it; `TrainingCrop.NONE` if plain images give less than twice as
            much.
    """

    divergence: float
    crop: TrainingCrop


class TrialError(FitError):
    """A hypothesis cannot be run; the message is the reason."""


class _FirstNormReachedError(Exception):
    """Ends a forward pass whose rest is not needed."""


class Runner:
    """Loads candidates, runs hypotheses and counts the passes.

    Args:
        candidates: the architectures.
        load: makes a candidate's module with the weights in it.
        clean: the images.
        device: where to compute.
        batch_size: images per forward pass.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        load: Callable[[Candidate], nn.Module],
        clean: CleanSet,
        *,
        device: torch.device,
        batch_size: int,
    ) -> None:
        self.candidates = candidates
        self.forward_passes = 0
        self.stem_passes = 0
        self._load = load
        self._clean = clean
        self._device = device
        self._batch_size = batch_size
        self._modules: dict[int, nn.Module] = {}
        self._inputs: dict[tuple[int, int, bytes], Tensor] = {}
        self._work: dict[tuple[int, int], int] = {}

    def module(self, candidate: int) -> nn.Module:
        """Return a candidate's module in eval mode on the device; the last few are kept."""
        module = self._modules.pop(candidate, None)
        if module is None:
            module = self._load(self.candidates[candidate]).to(self._device).eval()
        return _remember(self._modules, candidate, module, _KEPT_MODULES)

    def work(self, hypothesis: Hypothesis) -> int:
        """Return the multiply-adds of one image under a hypothesis; 0 where they are unknown."""
        key = (hypothesis.candidate, hypothesis.input_size)
        if key not in self._work:
            channels = self.candidates[hypothesis.candidate].input_channels
            module = self.module(hypothesis.candidate)
            self._work[key] = multiply_adds(module, channels, hypothesis.input_size)
        return self._work[key]

    def predict(self, hypothesis: Hypothesis, indices: np.ndarray) -> Predicted:
        """Run the whole model.

        Args:
            hypothesis: how.
            indices: which images. Shape ``(N,)``, int64.

        Raises:
            TrialError: the module raises, returns something else than finite logits ``(N, K)``.
        """
        classes = self.candidates[hypothesis.candidate].num_classes
        outputs: list[Tensor] = []
        confidence: list[Tensor] = []
        with torch.no_grad():
            for batch in self._batches(hypothesis, indices):
                logits = self._run(hypothesis, batch)
                self.forward_passes += len(batch)
                if not isinstance(logits, Tensor) or logits.shape != (len(batch), classes):
                    found = (
                        tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                    )
                    raise TrialError(f"expected logits {(len(batch), classes)}, found {found}")
                if not bool(torch.isfinite(logits).all()):
                    raise TrialError("its logits are not finite on the clean images")
                top = logits.to(torch.float32).softmax(dim=1).max(dim=1)
                outputs.append(logits.argmax(dim=1))
                confidence.append(top.values)
        return Predicted(
            outputs=torch.cat(outputs).cpu().numpy(),
            confidence=torch.cat(confidence).cpu().numpy().astype(np.float64),
        )

    def match(self, hypothesis: Hypothesis, indices: np.ndarray) -> Match | None:
        """Find the training crop under which the first BatchNorm layer's input fits its statistics.

        Args and errors as `divergence`.

        Returns:
            The lowest divergence; its crop, unless plain images do nearly as well. None without
            BatchNorm.
        """
        values: dict[TrainingCrop, float] = {}
        for crop in crops_for(hypothesis.input_size):
            value = self.divergence(hypothesis, indices, crop)
            if value is None:
                return None
            values[crop] = value
        best = min(values, key=lambda c: values[c])
        is_clear = _CLEAR_RATIO * values[best] <= values[TrainingCrop.NONE]
        return Match(divergence=values[best], crop=best if is_clear else TrainingCrop.NONE)

    def divergence(
        self, hypothesis: Hypothesis, indices: np.ndarray, crop: TrainingCrop
    ) -> float | None:
        """Compare the first BatchNorm layer's statistics with its input on clean images.

        Median over the channels of KL(clean ‖ running), methods/detectors.md §2.2 and §12.5, of the
        layer that is executed first. Each forward pass ends there.

        Args:
            hypothesis: how to run the model.
            indices: which images. Shape ``(N,)``, int64.
            crop: the crop of training to imitate.

        Returns:
            Nats; None if the model has no BatchNorm layer with running statistics or all its
            channels are dead.

        Raises:
            TrialError: the module raises before it gets there.
        """
        module = self.module(hypothesis.candidate)
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        moments = _InputMoments()
        handles = [norm.register_forward_pre_hook(moments.record) for norm in norms]
        try:
            with torch.no_grad():
                for batch in self._batches(hypothesis, indices, crop) if norms else ():
                    try:
                        self._run(hypothesis, batch)
                    except _FirstNormReachedError:
                        self.stem_passes += len(batch)
        finally:
            for handle in handles:
                handle.remove()
        return moments.divergence()

    def _batches(
        self,
        hypothesis: Hypothesis,
        indices: np.ndarray,
        crop: TrainingCrop = TrainingCrop.NONE,
    ) -> Iterator[Tensor]:
        channels = self.candidates[hypothesis.candidate].input_channels
        images = self._stack(hypothesis.input_size, channels, indices)
        images = training_crops(images, crop, mean=hypothesis.preprocessing.mean)
        shape = (1, channels, 1, 1)
        mean = torch.tensor(hypothesis.preprocessing.mean, device=self._device).view(shape)
        std = torch.tensor(hypothesis.preprocessing.std, device=self._device).view(shape)
        for batch in images.split(self._batch_size):
            yield (batch.to(self._device) - mean) / std

    def _stack(self, size: int, channels: int, indices: np.ndarray) -> Tensor:
        key = (size, channels, indices.tobytes())
        stack = self._inputs.pop(key, None)
        if stack is None:
            stack = self._clean.tensor(size, channels, indices)
        return _remember(self._inputs, key, stack, _KEPT_INPUTS)

    def _run(self, hypothesis: Hypothesis, batch: Tensor) -> object:
        module = self.module(hypothesis.candidate)
        try:
            return module(batch)
        # What a module raises on an input of the wrong size: torch's RuntimeError, or Python's own.
        except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError) as err:
            raise TrialError(_first_line(err)) from err
        except (AttributeError, AssertionError, MemoryError) as err:
            raise TrialError(_first_line(err)) from err


class _InputMoments:
    """Sums of the inputs of the BatchNorm layer that is executed first."""

    def __init__(self) -> None:
        self._norm: _BatchNorm | None = None
        self._sums: Tensor | None = None
        self._squares: Tensor | None = None
        self._count = 0

    def record(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Add one batch and end the forward pass."""
        assert isinstance(module, _BatchNorm)
        values = args[0]
        piece = max(1, _PIECE_ELEMENTS // max(1, values[0].numel()))
        for part in values.split(piece):
            flat = part.transpose(0, 1).flatten(1).to(torch.float64)
            sums, squares = flat.sum(dim=1), torch.linalg.vecdot(flat, flat)
            self._sums = sums if self._sums is None else self._sums + sums
            self._squares = squares if self._squares is None else self._squares + squares
        self._count += values.numel() // values.shape[1]
        self._norm = module
        raise _FirstNormReachedError

    def divergence(self) -> float | None:
        """Return the median over the channels that are not dead."""
        if self._norm is None or self._sums is None or self._squares is None or self._count < 2:
            return None
        running_mean, running_var = self._norm.running_mean, self._norm.running_var
        assert running_mean is not None
        assert running_var is not None
        mean, var = pooled_moments(self._sums, self._squares, self._count)
        values = gaussian_kl(mean, var, running_mean, running_var).cpu().numpy()
        alive = values[~np.isnan(values)]
        return float(np.median(alive)) if alive.size else None


def _remember(store: dict[_Key, _Value], key: _Key, value: _Value, limit: int) -> _Value:
    """Put the value last, where the oldest of more than `limit` are forgotten first."""
    while len(store) >= limit:
        store.pop(next(iter(store)))
    store[key] = value
    return value


def _first_line(err: BaseException) -> str:
    lines = str(err).strip().splitlines()
    return lines[0][:200] if lines else type(err).__name__
