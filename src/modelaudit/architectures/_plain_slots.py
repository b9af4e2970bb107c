"""What can stand between two weighted layers of a plain network.

The missing numbers of a sequence tell how many layers without weights there are: one is an
activation, two are an activation and a pooling or dropout. A pickled module tells exactly,
wherever its containers are ``Sequential``; elsewhere its forward pass is unknown and the rules are
used, preferring what is registered.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from modelaudit.architectures._ops import Op, from_hint, is_sequential, short_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from modelaudit.architectures._plain_layers import Chain, Layer
    from modelaudit.weights import ModuleHint

#: stands for the activation or pooling that a search style decides on
ACT, POOL = Op("act"), Op("pool")
FLATTEN = Op("Flatten")
GLOBAL_POOL = Op("AdaptiveAvgPool2d", (1,))
#: deeper modules than this belong to no plain sequence
_MAX_DEPTH = 16
_RESHAPES = ("flatten", "view", "reshape")


@dataclass(frozen=True, slots=True)
class Option:
    """One filling of a slot; a higher cost is less plausible (dimensionless)."""

    cost: float
    ops: tuple[Op, ...]


def _acts(ops: tuple[Op, ...]) -> bool:
    return any(op == ACT or op.is_activation for op in ops)


def _pools(ops: tuple[Op, ...]) -> bool:
    return any(op == POOL or op.is_pool for op in ops)


def _choices(act: tuple[Op, ...], *, likely_pool: bool, doubt: float) -> tuple[Option, ...]:
    with_pool, without = (*act, POOL), act
    first, second = (with_pool, without) if likely_pool else (without, with_pool)
    return Option(0.0, first), Option(doubt, second)


@dataclass(frozen=True, slots=True)
class _Place:
    """Between two layers: how many numbers are missing (None: unknown), and whether one was active.

    Attributes:
        missing: layers without weights in between; None across containers and between named layers.
        is_active: whether an activation has run since the last convolution or linear layer.
        side: side of the maps to be flattened here, in pixels; None where nothing is flattened.
        is_flat: whether the tensor has no spatial extent any more.
    """

    missing: int | None
    is_active: bool
    side: int | None
    is_flat: bool


def _rules(following: Layer, place: _Place) -> tuple[Option, ...]:
    """Return the fillings that the key numbers allow, most plausible first."""
    missing = place.missing
    act = () if place.is_active else (ACT,)
    if following.kind == "prelu":
        return (Option(0.0, ()),)
    if following.kind == "norm":
        if not missing:
            return (Option(0.0, ()),)
        if place.is_flat or (missing == 1 and act):
            return (Option(0.0, act),)
        return _choices(act, likely_pool=True, doubt=1.0)
    if place.side is not None:
        return _before_flatten(act, missing, place.side)
    if missing == 0:
        return (Option(0.0, ()),)
    if place.is_flat or (missing == 1 and act):
        return (Option(0.0, act),)
    return _choices(act, likely_pool=True, doubt=0.5 if missing is None or not act else 1.0)


def _before_flatten(act: tuple[Op, ...], missing: int | None, side: int) -> tuple[Option, ...]:
    """Return the fillings before the first linear layer; Flatten has a number too."""
    if missing is not None and missing <= 1:
        return (Option(0.0, (FLATTEN,)),)
    is_one = missing == 1 + len(act)
    if is_one and act:
        return (Option(0.0, (*act, FLATTEN)),)
    adaptive = GLOBAL_POOL if side == 1 else Op("AdaptiveAvgPool2d", (side,))
    return (
        Option(0.0 if side == 1 else 2.0, (*act, adaptive, FLATTEN)),
        Option(0.3, (*act, POOL, FLATTEN)),
        Option(0.5, (*act, FLATTEN)),
    )


class HintTree:
    """The layers without weights that a pickled module registered, in order.

    Args:
        hints: what it said, by module path; may be empty.
    """

    def __init__(self, hints: Mapping[str, ModuleHint]) -> None:
        self._hints = hints

    def knows(self, path: str) -> bool:
        """Whether the module at `path` said anything."""
        return path in self._hints

    @property
    def ops(self) -> tuple[Op, ...]:
        """Every layer without weights that is understood."""
        found = (from_hint(hint) for hint in self._hints.values())
        return tuple(op for op in found if op is not None)

    def _is_sequential(self, path: str) -> bool:
        hint = self._hints.get(path)
        return hint is not None and is_sequential(hint)

    def _leaves(self, path: str) -> Iterator[Op]:
        hint = self._hints.get(path)
        if hint is None or path.count(".") > _MAX_DEPTH:
            return
        if hint.children:
            for child in hint.children:
                yield from self._leaves(f"{path}.{child}" if path else child)
            return
        op = from_hint(hint)
        if op is not None:
            yield op
        elif not is_sequential(hint):
            yield self._guess(hint)

    @staticmethod
    def _guess(hint: ModuleHint) -> Op:
        """Return what a stranger's class most likely is; torch's own classes are not guessed."""
        kind = short_name(hint.class_name)
        if kind is not None:
            return Op(kind)
        name = hint.class_name.rpartition(".")[2].lower()
        return FLATTEN if any(word in name for word in _RESHAPES) else ACT

    def _siblings(self, parent: str, after: str | None, before: str | None) -> tuple[Op, ...]:
        hint = self._hints.get(parent)
        children = () if hint is None else hint.children
        start = children.index(after) + 1 if after in children else 0
        stop = children.index(before) if before in children else len(children)
        paths = (f"{parent}.{name}" if parent else name for name in children[start:stop])
        return tuple(op for path in paths for op in self._leaves(path))

    def around(self, path: str, ancestor: str, *, is_after: bool) -> tuple[Op, ...]:
        """Return what stands after (or before) a layer inside its branch below `ancestor`."""
        found: tuple[Op, ...] = ()
        below = path.removeprefix(f"{ancestor}." if ancestor else "")
        while "." in below:
            below, _, name = below.rpartition(".")
            parent = f"{ancestor}.{below}" if ancestor else below
            if self._is_sequential(parent):
                if is_after:
                    found = (*found, *self._siblings(parent, name, None))
                else:
                    found = (*self._siblings(parent, None, name), *found)
        return found

    def between(self, path: str, following: str, ancestor: str) -> tuple[tuple[Op, ...], bool]:
        """Return what is registered between two branches of `ancestor`, and whether it runs so."""
        skip = len(ancestor) + 1 if ancestor else 0
        first, second = (p[skip:].partition(".")[0] for p in (path, following))
        return self._siblings(ancestor, first, second), self._is_sequential(ancestor)


def common_ancestor(path: str, other: str) -> str:
    """Return the path of the deepest module that holds both; ``""`` is the root."""
    names: list[str] = []
    for a, b in zip(path.split(".")[:-1], other.split(".")[:-1], strict=False):
        if a != b:
            break
        names.append(a)
    return ".".join(names)


def _with_flatten(ops: tuple[Op, ...], place: _Place) -> tuple[Op, ...]:
    """Return the operations with one Flatten at the end where one is due, and none elsewhere."""
    rest = tuple(op for op in ops if op != FLATTEN)
    return rest if place.side is None else (*rest, FLATTEN)


def _hinted(tree: HintTree, layer: Layer, following: Layer, place: _Place) -> tuple[Option, ...]:
    ancestor = common_ancestor(layer.path, following.path)
    lead = tree.around(layer.path, ancestor, is_after=True)
    trail = tree.around(following.path, ancestor, is_after=False)
    middle, is_exact = tree.between(layer.path, following.path, ancestor)
    if is_exact:
        return (Option(0.0, _with_flatten((*lead, *middle, *trail), place)),)
    is_active = place.is_active or _acts(lead)
    missing = None if tree.knows(ancestor) else place.missing
    guesses = _rules(following, _Place(missing, is_active, place.side, place.is_flat))
    has_pooled = _pools(lead)
    options: list[Option] = []
    if middle and following.kind in {"conv", "linear"}:
        act = () if is_active or _acts(middle) else (ACT,)
        options.append(Option(0.0, (*lead, *act, *middle, *trail)))
    shift = 0.25 if options else 0.0
    for guess in guesses:
        again = 1.0 if has_pooled and _pools(guess.ops) else 0.0
        options.append(Option(guess.cost + shift + again, (*lead, *guess.ops, *trail)))
    return tuple(Option(o.cost, _with_flatten(o.ops, place)) for o in options)


def read_slots(chain: Chain, hints: Mapping[str, ModuleHint]) -> list[tuple[Option, ...]]:
    """Return the possible fillings after each layer, most plausible first.

    Args:
        chain: the weighted layers, in running order.
        hints: what a pickled module said; empty for a plain state dict.
    """
    tree = HintTree(hints) if hints else None
    slots: list[tuple[Option, ...]] = []
    is_active, is_flat = False, chain.layers[0].kind == "linear"
    for layer, following in pairwise(chain.layers):
        is_active = layer.kind == "prelu" or (layer.kind == "norm" and is_active)
        is_boundary = following.kind == "linear" and not is_flat
        place = _Place(
            missing=_missing(layer, following),
            is_active=is_active,
            side=chain.side if is_boundary else None,
            is_flat=is_flat,
        )
        if tree is None:
            options = _rules(following, place)
        else:
            options = _hinted(tree, layer, following, place)
        slots.append(options)
        is_active = is_active or all(_acts(option.ops) for option in options)
        is_flat = is_flat or is_boundary
    # what follows the logits changes no ranking of the classes, except pooling a map of them
    slots.append((Option(0.0, () if is_flat else (GLOBAL_POOL, FLATTEN)),))
    return slots


def _missing(layer: Layer, following: Layer) -> int | None:
    a, b = layer.index, following.index
    if layer.container != following.container or a is None or b is None:
        return None
    return max(b - a - 1, 0)
