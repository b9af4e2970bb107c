"""The report of a repair as something to look at: what was tried, what it cost, what it changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from modelaudit.repair_results import RepairOutcome
from modelaudit.report import words
from modelaudit.report.layout import (
    framed,
    number,
    page_width,
    plain_table,
    section,
    set_page,
)
from modelaudit.report.symbols import Symbols
from modelaudit.text import points_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType
    from rich.table import Table

    from modelaudit.repair_results import (
        Effect,
        Measurements,
        RepairAttempt,
        RepairReport,
        ScanSummary,
    )
    from modelaudit.results import ScannerResult

_STYLES = {
    RepairOutcome.REPAIRED: "green",
    RepairOutcome.NOT_NEEDED: "green",
    RepairOutcome.PLANNED: "cyan",
    RepairOutcome.STILL_BACKDOORED: "red",
    RepairOutcome.REFUSED: "red",
    RepairOutcome.INCONCLUSIVE: "yellow",
    RepairOutcome.NOT_WRITTEN: "yellow",
}
_HEADLINES = {
    RepairOutcome.REPAIRED: "a repaired model was written; its re-scan is clean",
    RepairOutcome.NOT_NEEDED: "the scan is clean; nothing was written",
    RepairOutcome.PLANNED: "dry run; nothing was written",
    RepairOutcome.STILL_BACKDOORED: "a model was written; it still shows a backdoor",
    RepairOutcome.INCONCLUSIVE: "a model was written; its re-scan reaches no verdict",
    RepairOutcome.NOT_WRITTEN: "nothing was written",
    RepairOutcome.REFUSED: "the file was refused; nothing in it was executed",
    RepairOutcome.UNREADABLE: "the checkpoint or the clean set could not be used",
    RepairOutcome.USAGE: "the request was not understood",
    RepairOutcome.ERROR: "modelaudit failed; nothing was written",
    RepairOutcome.INTERRUPTED: "the repair was stopped; nothing was written",
}
#: What a clean re-scan is worth; said wherever one is reported.
MEANING = (
    "this is what was measured on clean images, not a proof that no backdoor is left in the model"
)
_MAX_LAYERS = 12


def render_repair(
    report: RepairReport, *, width: int = 80, has_color: bool = False, encoding: str = "utf-8"
) -> str:
    """Return the whole report as text.

    Args:
        report: any report, also one of a repair that failed.
        width: columns of the page, brought into 80 to 120.
        has_color: whether to write ANSI colours.
        encoding: of the stream that the text goes to; without block characters it gets ASCII.
    """
    symbols = Symbols.for_encoding(encoding)
    return set_page(
        _parts(report, symbols), width=page_width(width), has_color=has_color, encoding=encoding
    )


def short_outcome(report: RepairReport) -> str:
    """Return the outcome in one line, for stdout when the report goes to a file."""
    reason = f": {words.sentence(report.reason)}" if report.reason else ""
    return f"{report.outcome.upper()}{reason}\n"


def _parts(report: RepairReport, symbols: Symbols) -> Iterator[RenderableType]:
    yield _headline(report, symbols)
    if report.attempts:
        yield section("What was tried", _attempts(report))
    judged = [a for a in report.attempts if a.proof is not None and a.budget is not None]
    if judged:
        allowed = points_text(report.max_accuracy_drop)
        title = f"Points lost on the held-out images; {allowed} allowed"
        yield section(title, *_losses(judged))
    chosen = report.chosen
    if chosen is not None:
        if chosen.proof is not None and chosen.proof.recalls:
            yield section("Classes, on the held-out images", _recalls(report, chosen.proof))
        if report.before is not None and chosen.after is not None:
            yield section("Scanners before and after", *_rescan(report.before, chosen))
        if chosen.effects:
            yield section("What was found, tried on both models", _effects(chosen.effects))
        if chosen.pruned:
            yield section(_pruned_title(chosen), *_pruned(chosen))
    notes = [f"{a.id}: {note}" for a in report.attempts for note in a.notes] + [*report.notes]
    if notes:
        unique = list(dict.fromkeys(notes))
        yield section("Notes", *(Text(f"- {words.sentence(note)}") for note in unique))
    yield section("", _facts(report))
    if report.next_step:
        yield Text()
        yield Text.assemble((f"{symbols.arrow} next: ", "bold"), words.sentence(report.next_step))


def _headline(report: RepairReport, symbols: Symbols) -> RenderableType:
    body = Text(_HEADLINES[report.outcome], style="bold")
    if report.reason:
        body.append(f"\n{words.sentence(report.reason)}", style="not bold")
    if report.outcome is RepairOutcome.REPAIRED:
        body.append(f"\n{MEANING}", style="not bold")
    title = report.outcome.upper().replace("_", " ")
    style = _STYLES.get(report.outcome, "magenta")
    return framed(body, title=title, style=style, symbols=symbols)


def _attempts(report: RepairReport) -> Table:
    table = plain_table("repair", "accuracy before", "after", "agree", "pruned", "re-scan", "s")
    for index in (3, 4, 6):
        table.columns[index].justify = "right"
    # The verdict is a word that programs know: it is never cut.
    table.columns[5].no_wrap = True
    table.columns[5].min_width = len("inconclusive")
    # So is a repair's id, unless a plug-in's is too long for a narrow page.
    names = [_name(attempt) for attempt in report.attempts]
    table.columns[0].min_width = min(20, max(map(len, names), default=0))
    for attempt, shown in zip(report.attempts, names, strict=True):
        name = Text(shown, style="bold" if attempt.is_chosen else "")
        if attempt.failure:
            table.add_row(name, Text(words.sentence(attempt.failure)))
            continue
        before, after, agreement = _accuracies(attempt.proof)
        verdict = "not run" if attempt.verdict is None else str(attempt.verdict.verdict)
        cost = attempt.cost
        table.add_row(
            name,
            before,
            after,
            agreement,
            f"{attempt.pruned_neurons:,}",
            verdict,
            f"{cost.seconds:.1f}",
        )
    return table


def _name(attempt: RepairAttempt) -> str:
    """Return what a line is called; each step of a chain has its own, what follows is marked."""
    return "+ " * bool(attempt.goes_on_from) + words.safe(attempt.id, 40)


def _accuracies(proof: Measurements | None) -> tuple[str, str, str]:
    if proof is None:
        return "-", "-", "-"
    return (
        _share(proof.accuracy_before, proof.interval_before),
        _share(proof.accuracy_after, proof.interval_after),
        f"{proof.agreement:.1%}",
    )


def _losses(judged: list[RepairAttempt]) -> Iterator[RenderableType]:
    """Show each loss with its interval, what is judged, and how many images would settle it."""
    table = plain_table("repair", "lost", "95 %", "with luck", "budget", "interval", "settled by")
    for index in (1, 3):
        table.columns[index].justify = "right"
    # A long chain of repairs is broken, never a figure.
    for column in table.columns[1:]:
        column.no_wrap = True
    for attempt in judged:
        proof, budget = attempt.proof, attempt.budget
        assert proof is not None
        assert budget is not None
        low, high = proof.interval_drop
        settled = budget.images_to_settle
        table.add_row(
            Text(words.safe(attempt.chain), style="bold" if attempt.is_chosen else ""),
            points_text(proof.accuracy_drop),
            f"{points_text(low)} to {points_text(high)}",
            points_text(budget.judged_drop),
            "within" if budget.is_within else "over",
            str(budget.interval),
            "-" if settled is None else f"~{settled:,} images",
        )
    yield table
    lucks = {a.budget.models: a.budget.luck for a in judged if a.budget and a.budget.models > 1}
    if lucks:
        models = max(lucks)
        yield Text(
            f"with luck: of {models} models that leave as much of the backdoor, the one that lost "
            f"least looks better than it is, by about {lucks[models]:.2f} standard errors. Added "
            "to what was lost, they are what the budget is asked of."
        )


def _share(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return "-"
    return f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def _recalls(report: RepairReport, proof: Measurements) -> Table:
    """Show the classes that the scan before named, and the one that lost most."""
    named = set() if report.before is None else set(report.before.verdict.target_labels)
    worst = proof.worst
    table = plain_table("class", "images", "before", "after", "")
    for recall in proof.recalls:
        is_worst = worst is not None and recall.label == worst.label and recall.loss > 0
        if recall.label not in named and not is_worst:
            continue
        said = ["named as target"] * (recall.label in named) + ["largest loss"] * is_worst
        table.add_row(
            str(recall.label),
            f"{recall.images:,}",
            f"{recall.before:.1%}",
            f"{recall.after:.1%}",
            ", ".join(said),
        )
    return table


def _rescan(before: ScanSummary, chosen: RepairAttempt) -> Iterator[RenderableType]:
    assert chosen.after is not None
    yield _scanners(before, chosen.after)
    if chosen.explained:
        names = ", ".join(words.safe(name, 40) for name in chosen.explained)
        yield Text(
            f"{names} after the repair: traces of before in running statistics. What "
            "decides below leads nowhere: this does not keep the re-scan from being clean."
        )


def _scanners(before: ScanSummary, after: ScanSummary) -> Table:
    table = plain_table("scanner", "before", "score", "target", "after", "score", "target")
    later = {result.id: result for result in after.scanners}
    for result in before.scanners:
        table.add_row(
            Text(words.safe(result.id, 40)), *_cells(result), *_cells(later.get(result.id))
        )
    return table


def _cells(result: ScannerResult | None) -> tuple[str, str, str]:
    if result is None:
        return "not run", "-", "-"
    targets = ", ".join(str(label) for label in result.target_labels)
    return str(result.finding), number(result.score), targets or str(result.pattern or "-")


def _effects(effects: tuple[Effect, ...]) -> Table:
    table = plain_table("artefact", "target", "images", "before", "after", "control")
    for effect in effects:
        table.add_row(
            Text(
                f"{words.safe(effect.scanner, 40)}: {words.sentence(effect.artefact)}"
                f"{'' if effect.is_deciding else ' (shown only)'}"
            ),
            "y -> another" if effect.target is None else str(effect.target),
            f"{effect.images:,}",
            _share(effect.share_before, effect.interval_before),
            _share(effect.share_after, effect.interval_after),
            "-" if effect.control_share is None else f"{effect.control_share:.1%}",
        )
    return table


def _pruned_title(attempt: RepairAttempt) -> str:
    mode = attempt.details.get("prune_mode")
    how = "" if mode is None else f", mode {words.safe(str(mode), 20)}"
    return f"Pruned neurons ({attempt.pruned_neurons:,}{how})"


def _pruned(attempt: RepairAttempt) -> Iterator[RenderableType]:
    for name, channels in attempt.pruned[:_MAX_LAYERS]:
        listed = ", ".join(str(c) for c in channels[:20])
        more = f", and {len(channels) - 20} more" if len(channels) > 20 else ""
        yield Text(f"{words.safe(name)}: {listed}{more}")
    if len(attempt.pruned) > _MAX_LAYERS:
        yield Text(f"and {len(attempt.pruned) - _MAX_LAYERS} more layers; the JSON lists them all")


def _facts(report: RepairReport) -> Table:
    table = plain_table()
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    suspect = report.suspect
    table.add_row("suspect", Text(words.sentence(suspect.path)))
    if suspect.sha256:
        table.add_row("SHA-256", Text(words.safe(suspect.sha256)))
    written = report.written
    if written is not None:
        size = words.bytes_text(written.size)
        table.add_row(
            "written",
            Text(", ".join((words.sentence(written.path), size, written.format))),
        )
        table.add_row("SHA-256", Text(written.sha256))
        for key in written.dropped_keys[:10]:
            table.add_row("left out", Text(words.safe(key)))
    table.add_row("clean set", Text(words.sentence(report.clean_set.path)))
    if report.repair_images:
        table.add_row(
            "",
            f"{report.repair_images:,} images for repairs, {report.proof_images:,} held out for "
            "the accuracies above",
        )
    cost = report.cost
    table.add_row(
        "cost",
        f"{cost.forward:,} image passes forward, {cost.forward_backward:,} forward and backward, "
        f"{cost.seconds:.1f} s on {words.safe(report.device, 24)}",
    )
    table.add_row("settings", f"seed {report.seed}, accuracy budget {report.max_accuracy_drop:.1%}")
    return table
