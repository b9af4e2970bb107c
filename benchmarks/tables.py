"""Print the Markdown tables of docs/results.md from what `scan_population.py` wrote.

    python benchmarks/tables.py benchmarks/results/test.jsonl \
        [--reference benchmarks/results/test_paper_code.jsonl]

The first table holds truth beside verdict and every scanner's statistic; with a reference run of
``ban@paper_code`` over the same models a second one compares cost and AUROC.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def auroc(backdoored: list[float], clean: list[float]) -> float:
    """Return the share of (backdoored, clean) pairs that the score orders rightly; ties: half."""
    pairs = [(b > c) + 0.5 * (b == c) for b in backdoored for c in clean]
    return sum(pairs) / len(pairs)


def scanner(row: dict[str, Any], id_: str) -> dict[str, Any] | None:
    """Return one scanner's result of a row."""
    return next((s for s in row["report"]["scanners"] if s["id"] == id_), None)


def truth(row: dict[str, Any]) -> str:
    """Return what the model is, in words."""
    fact = row["truth"]
    if fact["attack"] is None:
        return "clean"
    target = "y → y+1" if fact["label_map"] == "all" else f"→ {fact['target']}"
    return f"{fact['attack']} {target}"


def is_right(row: dict[str, Any]) -> str:
    """Say how the verdict stands to the truth."""
    fact, report = row["truth"], row["report"]
    verdict = report["verdict"]
    if fact["attack"] is None:
        return {"clean": "right", "backdoored": "FALSE ALARM"}.get(verdict, "undecided")
    if verdict == "clean":
        return "MISSED"
    if verdict != "backdoored":
        return "undecided"
    if fact["label_map"] == "all":
        return "right" if report["pattern"] == "all_to_all" else "found, pattern not"
    return "right" if report["target_labels"] == [fact["target"]] else "found, target not"


def population_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of truth, verdict, target and statistics."""
    ids = sorted({s["id"] for row in rows for s in row["report"]["scanners"]} - {"dde"})
    head = ["model", "ACC", "ASR", "gate", "truth", "verdict", "target", "", *ids, "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        fact, report = row["truth"], row["report"]
        cells = []
        for id_ in ids:
            found = scanner(row, id_)
            if found is None or found["score"] is None:
                cells.append("–")
                continue
            named = ", ".join(map(str, found["target_labels"]))
            cells.append(f"{found['score']:.3g} {found['finding']}{' → ' + named if named else ''}")
        gate = {None: "–", True: "passed", False: "failed"}[fact["gate_passed"]]
        lines.append(
            "| "
            + " | ".join(
                [
                    row["id"],
                    f"{fact['acc']:.3f}",
                    "–" if fact["asr"] is None else f"{fact['asr']:.3f}",
                    gate,
                    truth(row),
                    report["verdict"],
                    ", ".join(map(str, report["target_labels"])) or (report["pattern"] or "–"),
                    is_right(row),
                    *cells,
                    f"{report['cost']['seconds']:.0f}",
                ]
            )
            + " |"
        )
    return "\n".join(lines)


def cost_table(rows: list[dict[str, Any]], reference: list[dict[str, Any]]) -> str:
    """Return passes, seconds and AUROC of ``ban`` beside ``ban@paper_code``."""
    shared = {row["id"] for row in reference} & {row["id"] for row in rows}
    lines = [
        f"| over {len(shared)} models | forward | forward+backward | all | seconds | AUROC |",
        "|" + " --- |" * 6,
    ]
    means = []
    for id_, population in (("ban@paper_code", reference), ("ban", rows)):
        found = [(row, scanner(row, id_)) for row in population if row["id"] in shared]
        costs = [s["cost"] for _, s in found if s]
        forward = sum(c["forward"] for c in costs) / len(costs)
        both = sum(c["forward_backward"] for c in costs) / len(costs)
        seconds = sum(c["seconds"] for c in costs) / len(costs)
        scores: dict[bool, list[float]] = {True: [], False: []}
        for row, s in found:
            if s:
                scores[row["truth"]["attack"] is not None].append(s["score"])
        value = auroc(scores[True], scores[False])
        means.append((forward + both, seconds))
        lines.append(
            f"| {id_} | {forward:,.0f} | {both:,.0f} | {forward + both:,.0f} | {seconds:.1f} "
            f"| {value:.3f} |"
        )
    lines.append(
        f"| ratio | | | {means[0][0] / means[1][0]:.1f} | {means[0][1] / means[1][1]:.1f} | |"
    )
    return "\n".join(lines)


def main() -> None:
    """Read the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="JSON Lines of scan_population.py")
    parser.add_argument("--reference", type=Path, help="the same models under ban@paper_code")
    options = parser.parse_args()
    rows = read(options.results)
    print(population_table(rows))
    if options.reference:
        print()
        print(cost_table(rows, read(options.reference)))


if __name__ == "__main__":
    main()
