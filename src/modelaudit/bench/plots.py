"""Pictures of the scores: their distributions, clean beside each attack, and the ROC curves.

Colours are the eight of Okabe and Ito, which colour-blind readers tell apart; markers, line styles
and labels say the same once more. The same rows give the same bytes under the same matplotlib.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from modelaudit.bench.tables.population import COMBINED
from modelaudit.bench.tables.ranking import scores
from modelaudit.errors import ConfigError
from modelaudit.functional.rates import auroc, roc_points
from modelaudit.results import ScannerResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from modelaudit.bench.tables.population import Block, ModelScan

#: forms in which every figure is written
FORMS = ("png", "svg")

_CLEAN_COLOR = "#555555"
# Okabe and Ito without yellow, which is too light for thin lines on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Eight beside seven colours: fifty-six attacks differ. Clean models are hollow circles.
_MARKERS = ("s", "^", "D", "v", "P", "X", "*", "<")
_LINES = ("-", "--", "-.", ":")

#: A logarithmic axis is used where all scores are positive and span at least this ratio.
_LOG_FROM = 30.0

_SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Names inside an SVG are hashes; without a salt of its own they change from run to run.
    "svg.hashsalt": "modelaudit",
}


def draw(blocks: Sequence[Block], detectors: Sequence[str]) -> dict[str, bytes]:
    """Return the pictures of every block that has attacked and clean models, by file name.

    Args:
        blocks: models that are drawn together.
        detectors: scanners; the combined score comes first where there is one.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ConfigError(
            "plots need matplotlib, which is not installed; "
            "run pip install '.[report]' in the source folder, or leave --plots away"
        ) from err
    attacks = sorted({scan.truth.name for block in blocks for scan in block.attacked})
    # One attack looks the same in every picture.
    looks = {name: i for i, name in enumerate(attacks)}
    files = {}
    # The context puts every setting back: nothing global is left changed.
    with mpl.rc_context(_SETTINGS):
        for block in blocks:
            shown = [
                name
                for name in (COMBINED, *detectors)
                if scores(block.attacked, name) and scores(block.reference, name)
            ]
            if not shown:
                continue
            for stem, picture in (
                ("scores", _score_figure(Figure, block, shown, looks)),
                ("roc", _roc_figure(Figure, block, shown)),
            ):
                for form in FORMS:
                    files[f"{stem}_{block.id}.{form}"] = _encode(picture, form)
    return files


def _score_figure(
    figure_type: type[Figure], block: Block, names: Sequence[str], looks: dict[str, int]
) -> Figure:
    """Return one panel per score: a column of points for the clean models and for each attack."""
    groups: dict[str, list[ModelScan]] = {"clean": list(block.reference)}
    for scan in sorted(block.attacked, key=lambda s: (s.truth.name, s.model.id)):
        groups.setdefault(scan.truth.name, []).append(scan)
    columns = 2 if len(names) > 1 else 1
    lines = math.ceil(len(names) / columns)
    width = max(4.0, 1.2 + 0.45 * len(groups))
    figure = figure_type(figsize=(columns * width, 0.6 + 3.1 * lines), layout="constrained")
    figure.suptitle(f"Scores, {block.title}; dotted: suspicious from here")
    for index, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, index + 1)
        _score_panel(axes, groups, name, looks)
    return figure


def _score_panel(
    axes: Axes, groups: dict[str, list[ModelScan]], name: str, looks: dict[str, int]
) -> None:
    every: list[float] = []
    labels = []
    for column, (truth, scans) in enumerate(groups.items()):
        values = sorted(scores(scans, name))
        every.extend(values)
        look = looks.get(truth)
        axes.plot(
            [column + offset for offset in _spread(len(values))],
            values,
            linestyle="none",
            marker="o" if look is None else _MARKERS[look % len(_MARKERS)],
            markersize=5,
            color=_CLEAN_COLOR if look is None else _COLORS[look % len(_COLORS)],
            markerfacecolor="none" if look is None else None,
            alpha=0.85,
        )
        missing = len(scans) - len(values)
        labels.append(f"{truth} ({len(values)}{f', {missing} without' if missing else ''})")
    for threshold in _thresholds(groups, name):
        axes.axhline(threshold, color="black", linewidth=0.8, linestyle=":")
    if min(every) > 0 and max(every) / min(every) >= _LOG_FROM:
        axes.set_yscale("log")
    axes.set_title(name)
    axes.set_ylabel("score")
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_xticks(range(len(groups)), labels, rotation=45, ha="right", rotation_mode="anchor")


def _spread(count: int) -> list[float]:
    """Return offsets that keep points of one column apart: left, right, and the middle."""
    pattern = (0.0, -0.18, 0.18, -0.09, 0.09)
    return [pattern[i % len(pattern)] for i in range(count)]


def _thresholds(groups: dict[str, list[ModelScan]], name: str) -> list[float]:
    """Return the thresholds of a scanner, if all models share one or few."""
    outcomes = [scan.outcomes.get(name) for scans in groups.values() for scan in scans]
    found = {o.threshold for o in outcomes if isinstance(o, ScannerResult) and o.threshold}
    return sorted(found) if len(found) <= 2 else []


def _roc_figure(figure_type: type[Figure], block: Block, names: Sequence[str]) -> Figure:
    figure = figure_type(figsize=(8.0, 4.0), layout="constrained")
    axes = figure.add_subplot(1, 1, 1)
    axes.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=0.8)
    for index, name in enumerate(names):
        positives, negatives = scores(block.attacked, name), scores(block.reference, name)
        area = auroc(positives, negatives)
        x, y = zip(*roc_points(positives, negatives), strict=True)
        axes.plot(
            x,
            y,
            color=_COLORS[index % len(_COLORS)],
            linestyle=_LINES[index % len(_LINES)],
            # Curves that lie on each other stay visible: the first ones are the widest.
            linewidth=max(1.2, 4.0 - 0.5 * index),
            label=f"{name}: {area.value:.3f} ({area.low:.2f} to {area.high:.2f})",
        )
    axes.set_title(
        f"ROC, {block.title}: {len(block.attacked)} attacked, {len(block.reference)} clean",
        fontsize=9,
    )
    axes.set_xlabel("clean models flagged")
    axes.set_ylabel("attacked models flagged")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.legend(
        title="AUROC (95 % interval)", loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False
    )
    return figure


def _encode(figure: Figure, form: str) -> bytes:
    buffer = io.BytesIO()
    # Neither the date nor the version of matplotlib belongs into the file.
    metadata: dict[str, Any] = {"Date": None} if form == "svg" else {"Software": None}
    figure.savefig(buffer, format=form, dpi=150, metadata=metadata)
    return buffer.getvalue()
