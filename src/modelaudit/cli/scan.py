"""``modelaudit scan``: the options and what they must be before any work begins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modelaudit.cli import options
from modelaudit.cli.device import Device
from modelaudit.cli.formats import Format
from modelaudit.cli.jobs import Job
from modelaudit.cli.scan_job import ScanJob
from modelaudit.cli.scan_options import ScanOptions
from modelaudit.errors import ConfigError


def scan(
    checkpoint: Annotated[
        Path, typer.Argument(help="The file to scan.", metavar="CHECKPOINT", show_default=False)
    ],
    data: options.Data,
    scanner: options.ScannerIds = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Set a field of a scanner (repeatable), as in ban.epsilon=0.2.",
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
    max_images: options.MaxImages = 500,
    mixture: options.Mixture = None,
    calibration: options.Calibrations = None,
    budget: options.Budget = None,
    device: options.DeviceOption = Device.AUTO,
    seed: options.Seed = 0,
    alpha: options.Alpha = 0.05,
    form: options.Form = Format.TERMINAL,
    output: options.Output = None,
    is_quiet: options.Quiet = False,
    is_debug: options.Debug = False,
) -> Job:
    """Scan a checkpoint for a backdoor, with a few clean images.

    The checkpoint is never executed. Exit status: 0 clean, 1 backdoored, 2 usage, 3 refused,
    4 unreadable, 5 inconclusive, 6 output failed, 70 bug, 130 interrupted.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"--alpha must lie above 0 and below 1, got {alpha!r}")
    wanted = ScanOptions(
        checkpoint=checkpoint,
        data=data,
        scanners=tuple(scanner or ()),
        settings=tuple(options.parse_setting(text) for text in set_ or ()),
        weights=weights,
        arch=arch,
        preprocessing=options.parse_preprocessing(mean, std, preprocess),
        input_size=input_size,
        classes=classes,
        max_images=max_images,
        mixture=mixture,
        calibrations=tuple(calibration or ()),
        budget_seconds=options.check_budget(budget),
        device=device,
        seed=seed,
        alpha=alpha,
    )
    return ScanJob(wanted, form=form, output=output, is_quiet=is_quiet, is_debug=is_debug)
