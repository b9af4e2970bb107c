"""``modelaudit repair``: the options and what they must be before any work begins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modelaudit.cli import options
from modelaudit.cli.device import Device
from modelaudit.cli.formats import Format
from modelaudit.cli.jobs import Job
from modelaudit.cli.repair_job import RepairJob, RepairOptions
from modelaudit.cli.scan_options import ScanOptions
from modelaudit.errors import ConfigError


def repair(
    method: Annotated[
        str,
        typer.Argument(
            help="auto, or a repair's id, with a variant as in prune_mbns@paper_code.",
            metavar="METHOD",
            show_default=False,
        ),
    ],
    checkpoint: Annotated[
        Path, typer.Argument(help="The file to repair.", metavar="CHECKPOINT", show_default=False)
    ],
    data: options.Data,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The repaired checkpoint; needed unless --dry-run.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="JSON report of a scan of this file with these images, instead of scanning.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    max_accuracy_drop: Annotated[
        float,
        typer.Option(
            help="Clean accuracy that the repair may cost on held-out images, as a fraction; "
            "if auto picks the cheapest of several, some is added to its loss.",
            metavar="X",
        ),
    ] = 0.02,
    is_forced: Annotated[
        bool, typer.Option("--force", help="Write a repair that costs more than that, too.")
    ] = False,
    is_dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Try all of auto's list, or the method; scan nothing again, write nothing.",
        ),
    ] = False,
    keep_format: Annotated[
        bool,
        typer.Option(
            "--keep-format",
            help="Write the container that the input has; safetensors without it.",
        ),
    ] = False,
    scanner: options.ScannerIds = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Set a field of a repair or scanner (repeatable), as in prune_anp.epsilon=0.3.",
            metavar="ID.FIELD=VALUE",
            show_default=False,
        ),
    ] = None,
    weights: options.Weights = None,
    arch: options.Arch = None,
    mean: options.Mean = None,
    std: options.Std = None,
    preprocess: options.Preprocess = None,
    input_size: options.InputSize = None,
    classes: options.Classes = None,
    max_images: Annotated[
        int,
        typer.Option(
            help="Clean images used at most; the scans take 500 of them.", metavar="N", min=1
        ),
    ] = 2500,
    mixture: options.Mixture = None,
    calibration: options.Calibrations = None,
    budget: options.Budget = None,
    device: options.DeviceOption = Device.AUTO,
    seed: options.Seed = 0,
    form: options.Form = Format.TERMINAL,
    output: options.Output = None,
    is_quiet: options.Quiet = False,
    is_debug: options.Debug = False,
) -> Job:
    """Write a repaired copy of a checkpoint and show what it cost and changed.

    The input is never overwritten. Exit status: 0 written and the re-scan is clean (or nothing to
    repair), 1 written and still backdoored, 5 nothing written or no verdict, else as for scan.
    """
    if not 0 <= max_accuracy_drop <= 1:
        raise ConfigError(f"--max-accuracy-drop must lie in 0 to 1, got {max_accuracy_drop!r}")
    if out is None and not is_dry_run:
        raise ConfigError("--out expects the file to write; give one, or --dry-run")
    scan = ScanOptions(
        checkpoint=checkpoint,
        data=data,
        scanners=tuple(scanner or ()),
        weights=weights,
        arch=arch,
        preprocessing=options.parse_preprocessing(mean, std, preprocess),
        input_size=input_size,
        classes=classes,
        max_images=min(max_images, 500),
        mixture=mixture,
        calibrations=tuple(calibration or ()),
        budget_seconds=options.check_budget(budget),
        device=device,
        seed=seed,
    )
    wanted = RepairOptions(
        scan=scan,
        method=method,
        out=out,
        report=report,
        settings=tuple(options.parse_setting(text) for text in set_ or ()),
        max_images=max_images,
        max_accuracy_drop=max_accuracy_drop,
        is_forced=is_forced,
        is_dry_run=is_dry_run,
        keeps_format=keep_format,
    )
    return RepairJob(wanted, form=form, output=output, is_quiet=is_quiet, is_debug=is_debug)
