"""The report as something to look at: a verdict, the evidence per class, what it all rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from modelaudit.report import words
from modelaudit.report.evidence import evidence_table
from modelaudit.report.layout import (
    count,
    framed,
    number,
    page_width,
    plain_table,
    section,
    set_page,
)
from modelaudit.report.symbols import Symbols
from modelaudit.results import Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import RenderableType
    from rich.table import Table

    from modelaudit.results import Choice, Cost, ScanReport

_VERDICT_STYLES = {
    Verdict.CLEAN: "green",
    Verdict.BACKDOORED: "red",
    Verdict.REFUSED: "red",
    Verdict.INCONCLUSIVE: "yellow",
}
_FINDING_STYLES = {
    Finding.NONE: "green",
    Finding.SUSPICIOUS: "yellow",
    Finding.STRONG: "bold red",
    Finding.NO_POWER: "dim",
}


def render(
    report: ScanReport, *, width: int = 80, has_color: bool = False, encoding: str = "utf-8"
) -> str:
    """Return the whole report as text.

    Args:
        report: any report, also one of a scan that failed.
        width: columns of the page, brought into 80 to 120.
        has_color: whether to write ANSI colours.
        encoding: of the stream that the text goes to; without block characters it gets ASCII.

    Returns:
        Lines of at most `width` columns, each ended by a newline, none with trailing spaces.
    """
    width = page_width(width)
    symbols = Symbols.for_encoding(encoding)
    return set_page(
        _parts(report, symbols, width), width=width, has_color=has_color, encoding=encoding
    )


def _parts(report: ScanReport, symbols: Symbols, width: int) -> Iterator[RenderableType]:
    yield _headline(report, symbols)
    table = evidence_table(report, symbols, width)
    if table is not None:
        yield section("Evidence per class", table)
    if report.scanners:
        yield section("Scanners", _scanner_table(report), *_scanner_notes(report))
    if report.skipped or report.failed:
        yield section("Skipped or failed", _not_run(report))
    if report.clean_set.choices:
        yield section("How the model was run", _choices(report.clean_set.choices))
    if report.static_findings:
        yield section("In the file (nothing was executed)", _static_findings(report))
    yield section("", _facts(report))
    if report.notes:
        yield section("Notes", *(Text(f"- {words.sentence(note)}") for note in report.notes))
    if report.verdict.next_step:
        yield Text()
        yield Text.assemble(
            (f"{symbols.arrow} next: ", "bold"), words.sentence(report.verdict.next_step)
        )


def _headline(report: ScanReport, symbols: Symbols) -> RenderableType:
    record = report.verdict
    style = _VERDICT_STYLES.get(record.verdict, "magenta")
    body = Text(words.headline(report), style="bold")
    if record.reason:
        body.append(f"\n{words.sentence(record.reason)}", style="not bold")
    if record.verdict is Verdict.CLEAN:
        body.append(f"\n{words.CLEAN_MEANING}", style="not bold")
    if record.verdict in (Verdict.CLEAN, Verdict.BACKDOORED):
        body.append(f"\n{words.false_positive_text(report)}", style="not bold dim")
    return framed(body, title=record.verdict.upper(), style=style, symbols=symbols)


def _scanner_table(report: ScanReport) -> Table:
    table = plain_table("scanner", "finding", "score", "threshold", "target", "passes f / f+b", "s")
    for index in (2, 3, 5, 6):
        table.columns[index].justify = "right"
    for result in report.scanners:
        finding = result.finding.replace("_", " ")
        table.add_row(
            Text(words.safe(result.id, 24)),
            Text(finding, style=_FINDING_STYLES[result.finding]),
            Text(number(result.score)),
            Text(number(result.threshold)),
            Text(words.labels_text(report, result.target_labels) or "-"),
            Text(f"{count(result.cost.forward)} / {count(result.cost.forward_backward)}"),
            Text(f"{result.cost.seconds:.1f}"),
        )
    return table


def _scanner_notes(report: ScanReport) -> Iterator[Text]:
    """Yield one line per scanner on what its score is and how far it can be relied on."""
    for result in report.scanners:
        parts = [words.safe(result.score_name)] if result.score_name else []
        if result.is_confirmed:
            parts.append("confirmed on held-out images")
        if result.p_value is not None:
            adjusted = report.adjusted_p_values.get(result.id)
            holm = "" if adjusted is None else f" (Holm {adjusted:.2g})"
            parts.append(f"own p = {result.p_value:.2g}{holm}")
        if result.false_positive_rate is not None:
            population = words.safe(result.reference_population or "an unnamed population", 40)
            parts.append(f"false-positive rate {result.false_positive_rate:.3g} on {population}")
        if not result.is_calibrated:
            parts.append("not calibrated: does not move the verdict")
        parts.extend(words.sentence(note) for note in result.notes)
        if parts:
            yield Text(f"{words.safe(result.id, 24)}: {'; '.join(parts)}", style="dim")


def _not_run(report: ScanReport) -> Table:
    table = plain_table()
    for _ in range(3):
        table.add_column()
    for skipped in report.skipped:
        table.add_row(
            Text(words.safe(skipped.id, 24)),
            Text("skipped", style="yellow"),
            Text(words.sentence(skipped.reason)),
        )
    for failed in report.failed:
        table.add_row(
            Text(words.safe(failed.id, 24)),
            Text("failed", style="bold red"),
            Text(words.sentence(failed.error)),
        )
    return table


def _choices(choices: Iterable[Choice]) -> Table:
    table = plain_table()
    for _ in range(3):
        table.add_column()
    for choice in choices:
        how = "given" if choice.is_given else words.sentence(choice.margin)
        if choice.runner_up:
            how += f"{'; ' if how else ''}next best {words.safe(choice.runner_up)}"
        table.add_row(
            Text(words.safe(choice.name, 24), style="dim"),
            Text(words.safe(choice.value)),
            Text(how, style="dim"),
        )
    return table


def _static_findings(report: ScanReport) -> Table:
    table = plain_table()
    for _ in range(2):
        table.add_column()
    for finding in report.static_findings:
        where = f" ({words.safe(finding.location)})" if finding.location else ""
        table.add_row(
            Text(words.safe(finding.code, 24), style="yellow"),
            Text(f"{words.sentence(finding.message)}{where}"),
        )
    return table


def _facts(report: ScanReport) -> Table:
    """Return what was scanned, with what, and what it cost."""
    table = plain_table()
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    suspect = report.suspect
    details = [words.safe(part) for part in (suspect.format, suspect.architecture) if part]
    if suspect.size:
        details.insert(0, words.bytes_text(suspect.size))
    table.add_row("suspect", Text(", ".join([words.sentence(suspect.path), *details])))
    if suspect.sha256:
        table.add_row("SHA-256", Text(words.safe(suspect.sha256)))
    for hint in suspect.hints:
        table.add_row("hint", Text(words.safe(hint)))
    table.add_row("clean set", Text(words.sentence(report.clean_set.path)))
    if report.clean_set.images:
        table.add_row("", Text(words.clean_set_text(report)))
    reference = words.combined_text(report)
    if reference is not None:
        table.add_row("reference", Text(reference))
    table.add_row("cost", Text(_cost_text(report.cost, report.device)))
    stages = [f"{words.safe(name, 24)} {s:.1f}" for name, s in report.stage_seconds.items()]
    if stages:
        table.add_row("", Text(f"seconds: {', '.join(stages)}"))
    budget = f", budget {report.budget_seconds:g} s" if report.budget_seconds is not None else ""
    table.add_row("settings", Text(f"seed {report.seed}, alpha {report.alpha:g}{budget}"))
    return table


def _cost_text(cost: Cost, device: str) -> str:
    return (
        f"{cost.forward:,} image passes forward, {cost.forward_backward:,} forward and backward, "
        f"{cost.seconds:.1f} s on {words.safe(device, 24)}"
    )
