"""Cut a classifier into features g(x) and head f_L; only a numerically exact cut is accepted.

The classifier is the last linear layer (or 1x1 convolution) on the way to the logits; the feature
point is the last 4-D tensor before it, where the papers mask, that is before an average pooling
(methods/detectors.md §12.2).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from modelaudit.suspect.sites import layer_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_POOL_FUNCTIONS: tuple[object, ...] = (
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    torch.mean,
    torch.nn.functional.adaptive_avg_pool2d,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """An accepted cut.

    Attributes:
        features: normalised images ``(N, C, H, W)`` to features ``(N, *feature_shape)``.
        head: features to logits ``(N, K)``.
        feature_shape: shape of one image's features.
        point: name of the tensor that was cut, for the report.
        classifier: name of the layer that makes the logits.
        method: ``"graph"`` (the head costs almost nothing) or ``"injection"`` (the head runs the
            network).
    """

    features: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]
    feature_shape: tuple[int, ...]
    point: str
    classifier: str | None
    method: str


def _is_classifier(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and tuple(module.kernel_size) == (1, 1)
    )


def _is_average(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _POOLS)
    if node.op == "call_method":
        return node.target == "mean"
    return node.op == "call_function" and node.target in _POOL_FUNCTIONS


def _single_input(node: fx.Node) -> fx.Node | None:
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("value"), Tensor)]
    return tensors[0] if len(tensors) == 1 else None


def first_output(out: Any) -> Any:
    """Return the logits of a module that may return them with something else behind them."""
    return out[0] if isinstance(out, tuple | list) else out


class _Tracer(fx.Tracer):
    """Keeps every layer that can be a site whole, so that hooks and edits act in the graph too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_site = layer_kind(m) is not None
        return is_site or super().is_leaf_module(m, module_qualified_name)


class _Recorder(fx.Interpreter):
    """Keeps each node's value of one run in its ``meta``."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["value"] = value
        return value


def _feature_node(graph_module: fx.GraphModule) -> tuple[fx.Node, str] | None:
    """Return the node to cut at and the classifier's name."""
    modules = dict(graph_module.named_modules())
    output = next(n for n in graph_module.graph.nodes if n.op == "output")
    node = first_output(output.args[0])
    while isinstance(node, fx.Node) and not (
        node.op == "call_module" and _is_classifier(modules[str(node.target)])
    ):
        node = _single_input(node)  # flatten, squeeze, dropout after a 1x1 convolution
    if not isinstance(node, fx.Node):
        return None
    classifier = str(node.target)
    step = node
    while (earlier := _single_input(step)) is not None and earlier.op != "placeholder":
        step = earlier
        if step.meta["value"].dim() == 4 and not _is_average(step, modules):
            return step, classifier
    return (_single_input(node) or node), classifier


def _cut(graph_module: fx.GraphModule, at: fx.Node) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    """Return the graphs before and after `at`, or None when something bypasses it."""
    nodes = list(graph_module.graph.nodes)
    front, back = fx.Graph(), fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    position = nodes.index(at) + 1
    for node in nodes[:position]:
        mapping[node] = front.node_copy(node, lambda n: mapping[n])
    front.output(mapping[at])
    mapping = {at: back.placeholder("features")}
    for node in nodes[position:-1]:
        if node.op == "get_attr" or all(n in mapping for n in node.all_input_nodes):
            mapping[node] = back.node_copy(node, lambda n: mapping[n])
    logits = first_output(nodes[-1].args[0])
    if logits not in mapping:
        return None
    back.output(mapping[logits])
    parts = fx.GraphModule(graph_module, front), fx.GraphModule(graph_module, back)
    for part in parts:
        part.graph.eliminate_dead_code()
        part.recompile()
    return parts


def _by_graph(module: nn.Module, example: Tensor) -> Split | None:
    try:
        traced = fx.GraphModule(module, _Tracer().trace(module))
        # Values depend on the batch size where a module bakes it in; `_is_exact` finds that out.
        _Recorder(traced).run(example)
        found = _feature_node(traced)
        if found is None:
            return None
        node, classifier = found
        shape = tuple(node.meta["value"].shape[1:])
        parts = _cut(traced, node)
    except Exception:  # noqa: BLE001 - tracing a stranger's forward may raise anything; the next way is tried
        return None
    if parts is None:
        return None
    front, back = parts
    return Split(
        features=front,
        head=back,
        feature_shape=shape,
        point=str(node.target) if node.op == "call_module" else node.name,
        classifier=classifier,
        method="graph",
    )


class _StopForwardError(Exception):
    """Raised inside a hook to end a forward pass at the feature point."""


@contextmanager
def _output_of(child: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Generator[None]:
    handle = child.register_forward_hook(lambda _m, _a, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def _by_injection(module: nn.Module, example: Tensor) -> Split | None:
    """Cut at a leaf module's output: the head replaces it and runs the network again."""
    calls: list[tuple[str, nn.Module, Tensor]] = []
    handles = [
        child.register_forward_hook(
            lambda m, _a, out, name=name: (
                calls.append((name, m, out)) if isinstance(out, Tensor) else None
            )
        )
        for name, child in module.named_modules()
        if not list(child.children())
    ]
    try:
        logits = first_output(module(example))
    finally:
        for handle in handles:
            handle.remove()
    classifier = next(
        (
            name
            for name, child, out in reversed(calls)
            if _is_classifier(child)
            and out.flatten(1).shape == logits.shape
            and torch.allclose(out.flatten(1), logits)
        ),
        None,
    )
    spatial = [
        (name, child, out)
        for name, child, out in calls
        if out.dim() == 4 and not isinstance(child, _POOLS) and name != classifier
    ]
    if classifier is None or not spatial:
        return None
    point, feature_module, value = spatial[-1]
    size = example.shape[1:]

    def features(images: Tensor) -> Tensor:
        kept: list[Tensor] = []

        def stop(output: Tensor) -> None:
            kept.append(output)
            raise _StopForwardError

        with _output_of(feature_module, stop):
            try:
                module(images)
            except _StopForwardError:
                return kept[0]
        raise RuntimeError("the feature module was not called")

    def head(values: Tensor) -> Tensor:
        with _output_of(feature_module, lambda _: values):
            return first_output(module(values.new_zeros((len(values), *size))))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any

    return Split(
        features=features,
        head=head,
        feature_shape=tuple(value.shape[1:]),
        point=point,
        classifier=classifier,
        method="injection",
    )


def _is_exact(module: nn.Module, split: Split, batches: list[Tensor]) -> bool:
    for batch in batches:
        try:
            logits, again = first_output(module(batch)), split.head(split.features(batch))
        except Exception:  # noqa: BLE001 - a cut that cannot run is no cut
            return False
        if logits.shape != again.shape:
            return False
        if (logits - again).abs().max() > 1e-4 * logits.abs().max():
            return False
    return True


def find_split(module: nn.Module, batches: list[Tensor]) -> Split | None:
    """Return a numerically exact features/head split, or None.

    Args:
        module: in eval mode, mapping normalised images to logits.
        batches: normalised images in batches of different sizes.

    Returns:
        The first of graph and injection cut whose head reproduces the logits within 1e-4 of their
        largest magnitude on every batch; None if neither does.
    """
    with torch.no_grad():
        for attempt in (_by_graph, _by_injection):
            split = attempt(module, batches[0])
            if split is not None and _is_exact(module, split, batches):
                return split
    return None
