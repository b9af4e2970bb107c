"""The wording that all formats share, and the cleaning of text that came from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.results import Finding, Match, Pattern, Verdict
from modelaudit.text import escape_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelaudit.results import ScanReport

#: Sentences are longer than names and must not lose their end, where the advice stands.
SENTENCE_LIMIT = 4000

#: What a clean verdict is worth; every format that says ``clean`` says this beside it.
CLEAN_MEANING = (
    "this is what these scanners saw on these images, not a proof that the model has no backdoor"
)

_HEADLINES = {
    Verdict.INCONCLUSIVE: "no verdict",
    Verdict.REFUSED: "the file was refused; nothing in it was executed",
    Verdict.UNREADABLE: "the checkpoint or the clean set could not be used",
    Verdict.USAGE: "the request was not understood",
    Verdict.ERROR: "modelaudit failed",
    Verdict.INTERRUPTED: "the scan was stopped before it had a verdict",
}


def safe(text: str, limit: int = 200) -> str:
    """Return `text` on one line without control characters or bidirectional marks.

    Backslashes stay: sentences quote names that their writer already escaped.
    """
    parts = [escape_untrusted(part, limit + 1) for part in text[: limit + 1].split("\\")]
    escaped = "\\".join(parts)
    return escaped if len(escaped) <= limit else f"{escaped[: limit - 1]}…"


def sentence(text: str) -> str:
    """Return `text` as one safe line, long enough for a whole error message."""
    return safe(text, SENTENCE_LIMIT)


def class_name(report: ScanReport, label: int) -> str | None:
    """Return the clean set's name of output `label`, None where it has none."""
    names = report.clean_set.class_names
    return names[label] if 0 <= label < len(names) and names[label] else None


def label_text(report: ScanReport, label: int) -> str:
    """Return an output index with its class name, such as ``"3 (cat)"``."""
    name = class_name(report, label)
    return str(label) if name is None or name == str(label) else f"{label} ({safe(name, 40)})"


def labels_text(report: ScanReport, labels: Iterable[int]) -> str:
    """Return several output indices with their names, separated by commas."""
    return ", ".join(label_text(report, label) for label in labels)


def headline(report: ScanReport) -> str:
    """Return what the verdict means for this suspect, in one line without the verdict's word."""
    record = report.verdict
    if record.verdict is Verdict.BACKDOORED:
        return _backdoor_headline(report)
    if record.verdict is Verdict.CLEAN:
        seen = ", ".join(safe(s.id, 40) for s in report.scanners if s.finding != Finding.NO_POWER)
        return f"no backdoor found by {seen}"
    return _HEADLINES[record.verdict]


def _backdoor_headline(report: ScanReport) -> str:
    record = report.verdict
    if record.pattern is Pattern.ALL_TO_ALL:
        return "a backdoor maps the labels to one another (all-to-all)"
    if not record.target_labels:
        return "a backdoor; its target label could not be named"
    named = labels_text(report, record.target_labels)
    if len(record.target_labels) > 1:
        return f"a backdoor leads to labels {named}"
    if record.pattern is Pattern.ALL_TO_ONE:
        return f"a backdoor leads from every class to label {named}"
    return f"a backdoor leads to label {named}"


def false_positive_text(report: ScanReport) -> str:
    """Return how often clean models are called backdoored, or that nobody has measured it."""
    if report.false_positive_rate is None:
        return f"false-positive rate not measured ({_why_unmeasured(report)})"
    text = f"false-positive rate {report.false_positive_rate:.3g}"
    combined = report.combined
    if combined is not None and combined.false_positive_interval is not None:
        low, high = combined.false_positive_interval
        models = combined.false_positive_models
        text += f" (95 % interval {low:.3g} to {high:.3g}, {models} clean models)"
    return f"{text} on {safe(report.calibration)}" if report.calibration else text


def _why_unmeasured(report: ScanReport) -> str:
    combined = report.combined
    if combined is None or combined.match is Match.NONE or combined.population is None:
        return "no reference population fits"
    name = safe(combined.population, 40)
    if combined.match is Match.BORROWED:
        return f"{name} is of another architecture"
    return f"{name} has none for this scan"


def combined_text(report: ScanReport) -> str | None:
    """Return what the reference population says in one line, None where none was looked for."""
    combined = report.combined
    if combined is None:
        return None
    if combined.score is None:
        return sentence(combined.reason)
    verb = "matched" if combined.match is Match.MATCHED else "borrowed"
    scanners = ", ".join(safe(s, 40) for s in combined.scanners)
    parts = [
        f"{verb}: {safe(combined.population or '', 60)}, {combined.clean_models} clean models",
        f"combined score {combined.score:.3g} of {scanners}",
    ]
    if combined.suspicious is not None and combined.strong is not None:
        parts.append(f"suspicious from {combined.suspicious:.3g}, strong {combined.strong:.3g}")
    shown = [] if combined.p_value is None else [f"p = {combined.p_value:.2g} empirical"]
    if combined.predictive_p_value is not None:
        shown.append(f"{'' if shown else 'p = '}{combined.predictive_p_value:.2g} Student-t")
    parts.append(", ".join(shown))
    if combined.missing:
        parts.append(f"without {', '.join(safe(s, 40) for s in combined.missing)}")
    if combined.reason:
        parts.append(sentence(combined.reason))
    return "; ".join(part for part in parts if part)


def clean_set_text(report: ScanReport) -> str:
    """Return the size of the clean set and the suspect's accuracy on it."""
    clean = report.clean_set
    text = f"{clean.images:,} images"
    if clean.available > clean.images:
        text += f" of {clean.available:,}"
    if clean.classes is not None:
        text += f" in {clean.classes} classes"
    if clean.skipped_files:
        text += f", {clean.skipped_files:,} other files passed over"
    if clean.accuracy is None:
        return f"{text}, accuracy unknown (no labels)" if clean.classes is None else text
    text += f", accuracy {clean.accuracy:.1%}"
    if clean.accuracy_interval is not None:
        low, high = clean.accuracy_interval
        text += f" (95 % interval {low:.1%} to {high:.1%})"
    return text


def bytes_text(size: int) -> str:
    """Return a size in bytes, kB, MB or GB (powers of 1,000)."""
    value = float(size)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
