"""``modelaudit calibrate``: a reference population from a user's own known-clean models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from modelaudit.cli import options
from modelaudit.cli.calibrate_job import CalibrateJob
from modelaudit.cli.device import Device
from modelaudit.cli.jobs import Job
from modelaudit.cli.scan_options import ScanOptions


def calibrate(
    clean_models: Annotated[
        Path,
        typer.Option(
            help="Folder of checkpoints that you know to be clean; 20 or more.",
            metavar="DIR",
            show_default=False,
        ),
    ],
    data: options.Data,
    out: Annotated[
        Path,
        typer.Option(
            help="The population, for scan --calibration.", metavar="FILE", show_default=False
        ),
    ],
    id_: options.PopulationName = None,
    scanner: options.ScannerIds = None,
    arch: options.Arch = None,
    mean: options.Mean = None,
    std: options.Std = None,
    preprocess: options.Preprocess = None,
    input_size: options.InputSize = None,
    classes: options.Classes = None,
    max_images: options.MaxImages = 500,
    device: options.DeviceOption = Device.AUTO,
    seed: options.Seed = 0,
    is_quiet: options.Quiet = False,
    is_debug: options.Debug = False,
) -> Job:
    """Build a reference population from models that you know to be clean.

    Every file of the folder is scanned as scan does, without a time limit. An interrupted run goes
    on where it stopped. Exit status: 0 written, 2 usage or too few usable models, 6 output failed.
    """
    wanted = ScanOptions(
        checkpoint=clean_models,
        data=data,
        scanners=tuple(scanner or ()),
        arch=arch,
        preprocessing=options.parse_preprocessing(mean, std, preprocess),
        input_size=input_size,
        classes=classes,
        max_images=max_images,
        budget_seconds=math.inf,
        device=device,
        seed=seed,
    )
    return CalibrateJob(
        models=clean_models,
        options=wanted,
        out=out,
        id_=id_ or out.stem,
        is_quiet=is_quiet,
        is_debug=is_debug,
    )
