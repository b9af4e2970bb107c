"""The most plausible ways in which a plain network's layers fit together.

Kernel sizes and channels are in the file; stride, padding and pooling are not, but the first
linear layer says how large the last map was. Every combination that ends there is a solution; they
are found in the order of their cost, a sum over the choices, by best-first search with the exact
cost to go.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from modelaudit.architectures._hints import convolution
from modelaudit.architectures._ops import Op, avg_pool, max_pool, square
from modelaudit.architectures._plain_slots import ACT, FLATTEN, POOL, HintTree, read_slots

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from modelaudit.architectures._hints import PaddingMode
    from modelaudit.architectures._plain_layers import Chain, Layer
    from modelaudit.architectures._plain_slots import Option
    from modelaudit.weights import ModuleHint

#: at most so many candidates go on to be judged by accuracy
MAX_CANDIDATES = 64
#: input sizes to try, in pixels, most plausible first
_COLOUR_SIZES = (32, 64, 28, 96, 128, 224, 48, 160, 256)
_GREY_SIZES = (28, 32, 64, 96, 128, 224, 48, 160, 256)
_MIN_SIZE, _MAX_SIZE = 4, 256
#: a reading that costs less needs no look at unusual sizes; one at an unusual size costs more
_PLAUSIBLE, _UNUSUAL_SIZE = 2.0, 2.0
#: cost of what is less usual (dimensionless; only the order matters)
_VALID_PADDING, _OTHER_PADDING, _STRIDE_TWO, _SIZE_RANK = 0.4, 2.0, 2.0, 0.2


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution's stride, padding and dilation in pixels, and its padding mode."""

    index: int
    kernel: int
    stride: int
    padding: int
    dilation: int = 1
    padding_mode: PaddingMode = "zeros"

    def output_size(self, size: int) -> int:
        """Return the output's side for an input of side `size` (pixels); 0 where none is left."""
        room = size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1
        return room // self.stride + 1 if room >= 0 else 0

    def __str__(self) -> str:
        return f"conv{self.kernel}/{self.stride}p{self.padding}"


Part = Convolution | Op


@dataclass(frozen=True, slots=True)
class _Choice:
    cost: float
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class _Style:
    """Choices that hold for the whole network, and their cost."""

    cost: float
    is_padded: bool
    pool: Op


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """One solution.

    Attributes:
        cost: sum over its choices; lower is more plausible (dimensionless).
        fillings: for each layer of the chain, the convolution's geometry (if it is one) and what
            follows; an activation that nothing fixed is still `ACT`.
        sizes: input sizes that it takes, in pixels, most plausible first.
    """

    cost: float
    fillings: tuple[tuple[Part, ...], ...]
    sizes: tuple[int, ...]


_POOLS = ((0.0, max_pool(2, 2)), (1.5, avg_pool(2, 2)), (2.0, max_pool(3, 2)))


def _styles(hints: Mapping[str, ModuleHint]) -> Iterator[_Style]:
    registered = dict.fromkeys(
        op for op in HintTree(hints).ops if op.is_pool and not op.kind.startswith("Adaptive")
    )
    pools = tuple((0.5 * i, op) for i, op in enumerate(registered)) or _POOLS
    for pool_cost, pool in pools:
        yield _Style(pool_cost, is_padded=True, pool=pool)
        yield _Style(pool_cost + _VALID_PADDING, is_padded=False, pool=pool)


def _hinted_geometry(layer: Layer, index: int, hint: ModuleHint | None) -> Convolution | None:
    if hint is None:
        return None
    said = convolution(hint)
    kernel = layer.shape[2]
    stride = square(said.stride, low=1, high=_MAX_SIZE)
    dilation = square(said.dilation or 1, low=1, high=_MAX_SIZE)
    if stride is None or dilation is None:
        return None
    reach = dilation * (kernel - 1)
    # where the reach is odd, torch pads "same" by one pixel more on the right: not expressible here
    words = {"valid": 0, "same": reach // 2 if reach % 2 == 0 else None}
    padding = square(
        words[said.padding] if isinstance(said.padding, str) else said.padding,
        low=0,
        high=_MAX_SIZE,
    )
    if padding is None:
        return None
    mode = said.padding_mode or "zeros"
    return Convolution(index, kernel, stride, padding, dilation, mode)


def _geometries(layer: Layer, index: int, hint: ModuleHint | None, style: _Style) -> list[_Choice]:
    hinted = _hinted_geometry(layer, index, hint)
    if hinted is not None:
        return [_Choice(0.0, (hinted,))]
    kernel = layer.shape[2]
    usual, other = (kernel // 2, 0) if style.is_padded else (0, kernel // 2)
    paddings = {usual: 0.0} if usual == other else {usual: 0.0, other: _OTHER_PADDING}
    return [
        _Choice(padding_cost + stride_cost, (Convolution(index, kernel, stride, padding),))
        for padding, padding_cost in paddings.items()
        for stride, stride_cost in ((1, 0.0), (2, _STRIDE_TWO))
    ]


def _filled(option: Option, style: _Style) -> _Choice:
    return _Choice(option.cost, tuple(style.pool if op == POOL else op for op in option.ops))


def _advance(size: int, parts: tuple[Part, ...], side: int | None) -> int:
    """Return the side after `parts`; 0 where the map vanishes or is flattened at another side."""
    for part in parts:
        if size == 0:
            break
        if part == FLATTEN:
            # beyond it only a positive number is needed
            size = 1 if side is None or size == side else 0
        else:
            size = part.output_size(size)
    return size


class _Plan:
    """The choices of one style in running order, and the search through them.

    Args:
        steps: alternatives of each step.
        owners: the layer that each step belongs to.
        side: side of the maps that the first linear layer takes, in pixels.
        cost: the style's own cost (dimensionless).
    """

    def __init__(
        self, steps: list[list[_Choice]], owners: list[int], side: int | None, cost: float
    ) -> None:
        self._steps = steps
        self._owners = owners
        self._side = side
        self._known: dict[tuple[int, int], float] = {}
        self.cost = cost

    def _to_go(self, step: int, size: int) -> float:
        """Return the least cost from `step` on with maps of side `size`; infinite if none fits."""
        if size == 0:
            return float("inf")
        if step == len(self._steps):
            return 0.0
        known = self._known.get((step, size))
        if known is None:
            known = min(
                choice.cost + self._to_go(step + 1, _advance(size, choice.parts, self._side))
                for choice in self._steps[step]
            )
            self._known[step, size] = known
        return known

    def solutions(self, size: int) -> Iterator[tuple[float, tuple[_Choice, ...]]]:
        """Yield cost and choices of each way through from images of side `size`, cheapest first."""
        start = self._to_go(0, size)
        if start == float("inf"):
            return
        # among equals the longest path goes on, so that a solution is finished before others begin
        heap: list[tuple[float, int, int, float, int, tuple[_Choice, ...]]] = [
            (start, 0, 0, 0.0, size, ())
        ]
        visits = 0
        while heap:
            _, depth, _, cost, current, taken = heapq.heappop(heap)
            step = -depth
            if step == len(self._steps):
                yield self.cost + cost, taken
                continue
            for choice in self._steps[step]:
                visits += 1
                after = _advance(current, choice.parts, self._side)
                total = cost + choice.cost
                bound = total + self._to_go(step + 1, after)
                if bound < float("inf"):
                    entry = (bound, depth - 1, visits, total, after, (*taken, choice))
                    heapq.heappush(heap, entry)

    def grouped(self, taken: tuple[_Choice, ...]) -> tuple[tuple[Part, ...], ...]:
        """Return the parts of the choices by the layer that they belong to."""
        fillings: list[list[Part]] = [[] for _ in range(self._owners[-1] + 1)]
        for choice, owner in zip(taken, self._owners, strict=True):
            fillings[owner].extend(choice.parts)
        return tuple(tuple(parts) for parts in fillings)


def _plan(
    chain: Chain, hints: Mapping[str, ModuleHint], slots: list[tuple[Option, ...]], style: _Style
) -> _Plan:
    steps: list[list[_Choice]] = []
    owners: list[int] = []
    for index, (layer, options) in enumerate(zip(chain.layers, slots, strict=True)):
        if layer.kind == "conv":
            steps.append(_geometries(layer, index, hints.get(layer.path), style))
            owners.append(index)
        steps.append([_filled(option, style) for option in options])
        owners.append(index)
    return _Plan(steps, owners, chain.side, style.cost)


def structures(chain: Chain, hints: Mapping[str, ModuleHint]) -> list[Structure]:
    """Return at most `MAX_CANDIDATES` ways to connect a chain that starts with a convolution.

    Args:
        chain: the weighted layers, in running order.
        hints: what a pickled module said; empty for a plain state dict.

    Returns:
        Solutions, most plausible first; none where no input size leads to the first linear layer.
    """
    slots = read_slots(chain, hints)
    usual = _GREY_SIZES if chain.in_channels == 1 else _COLOUR_SIZES
    found = _search(chain, hints, slots, usual, dearest=float("inf"))
    if found and found[0].cost < _PLAUSIBLE:
        return found
    others = tuple(s for s in range(_MIN_SIZE, _MAX_SIZE + 1) if s not in usual)
    exact = [tuple(o for o in options if hints or not _resizes(o.ops)) for options in slots]
    dearest = _PLAUSIBLE / 2 if found else float("inf")
    swept = _search(chain, hints, exact, others, dearest=dearest)
    swept = [replace(structure, cost=structure.cost + _UNUSUAL_SIZE) for structure in swept]
    return sorted([*found, *swept], key=lambda structure: structure.cost)[:MAX_CANDIDATES]


def _resizes(parts: tuple[Part, ...]) -> bool:
    """Return whether an adaptive pooling makes any input size fit."""
    return any(isinstance(part, Op) and part.kind.startswith("Adaptive") for part in parts)


def _search(
    chain: Chain,
    hints: Mapping[str, ModuleHint],
    slots: list[tuple[Option, ...]],
    sizes: tuple[int, ...],
    *,
    dearest: float,
) -> list[Structure]:
    """Return the best solutions over all styles and `sizes`, each of a cost up to `dearest`."""
    costs: dict[tuple[tuple[Part, ...], ...], float] = {}
    plans = [_plan(chain, hints, slots, style) for style in _styles(hints)]
    for rank, size in enumerate(sizes):
        handicap = _SIZE_RANK * min(rank, len(_COLOUR_SIZES))
        for plan in plans:
            # what cannot come among the best any more is not looked for
            ranked = sorted(costs.values())[MAX_CANDIDATES - 1 : MAX_CANDIDATES]
            limit = min([dearest, *(cost - handicap for cost in ranked)])
            solutions = islice(plan.solutions(size), MAX_CANDIDATES)
            for cost, taken in solutions:
                if cost > limit:
                    break
                fillings = plan.grouped(taken)
                total = cost + handicap
                costs[fillings] = min(total, costs.get(fillings, total))
    best = sorted(costs.items(), key=lambda item: item[1])[:MAX_CANDIDATES]
    return [
        Structure(cost=cost, fillings=fillings, sizes=_accepted(fillings, sizes, chain.side))
        for fillings, cost in best
    ]


def _accepted(
    fillings: tuple[tuple[Part, ...], ...], sizes: tuple[int, ...], side: int | None
) -> tuple[int, ...]:
    parts = tuple(part for filling in fillings for part in filling)
    return tuple(size for size in sizes if _advance(size, parts, side) > 0)


def replace_act(parts: tuple[Part, ...], act: Op) -> tuple[Part, ...]:
    """Return `parts` with the activation that nothing fixed made `act`."""
    return tuple(act if part == ACT else part for part in parts)


__all__ = [
    "MAX_CANDIDATES",
    "Convolution",
    "Part",
    "Structure",
    "replace_act",
    "structures",
]
