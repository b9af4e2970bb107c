"""The short verdict: what stays on stdout when the whole report goes to a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.report import words
from modelaudit.results import Finding, Verdict

if TYPE_CHECKING:
    from modelaudit.results import ScannerResult, ScanReport


def short_verdict(report: ScanReport) -> str:
    """Return the verdict, what it rests on, and what to do next, as up to three lines.

    Args:
        report: any report, also one of a scan that failed.

    Returns:
        Lines of plain text, each ended by a newline; untrusted parts escaped.
    """
    record = report.verdict
    lines = [f"{record.verdict}: {words.headline(report)}"]
    if record.verdict is Verdict.CLEAN:
        lines.append(words.CLEAN_MEANING)
    elif record.verdict is Verdict.BACKDOORED:
        evidence = [_evidence(s) for s in report.scanners if _accuses(s)]
        lines.append(f"evidence: {'; '.join([*evidence, words.false_positive_text(report)])}")
    elif record.reason:
        lines.append(words.sentence(record.reason))
    if record.next_step:
        lines.append(f"next: {words.sentence(record.next_step)}")
    return "".join(f"{line}\n" for line in lines)


def _accuses(result: ScannerResult) -> bool:
    return result.finding in (Finding.STRONG, Finding.SUSPICIOUS)


def _evidence(result: ScannerResult) -> str:
    text = f"{words.safe(result.id, 40)} {result.finding}"
    if result.score is not None and result.threshold is not None:
        text += f" (score {result.score:.3g}, threshold {result.threshold:.3g})"
    return text
