"""Options that several commands share, and what they must be before any work begins."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from modelaudit.cli.device import Device
from modelaudit.cli.formats import Format
from modelaudit.errors import ConfigError
from modelaudit.preprocessing import PRESETS, Preprocessing

Data = Annotated[
    Path,
    typer.Option(
        help="Clean images: a folder per class, a folder with labels.csv, or an .npz.",
        metavar="DIR",
        show_default=False,
    ),
]
ScannerIds = Annotated[
    list[str] | None,
    typer.Option(
        help="Run this scanner only (repeatable), with a variant as in ban@paper_code.",
        metavar="ID",
        show_default="all",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Key of the file under which the weights are that you use, as in state_dict_ema.",
        metavar="KEY",
        show_default="worked out",
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        help="Architecture by name, or your own as path/to/file.py:factory, which is run.",
        metavar="NAME",
        show_default="worked out",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        help="Mean per channel for pixels in [0, 1], as in 0.5,0.5,0.5; with --std.",
        metavar="M,...",
        show_default=False,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        help="Standard deviation per channel; with --mean.",
        metavar="S,...",
        show_default=False,
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        help=f"Normalisation by name: {', '.join(p.id for p in PRESETS)}.",
        metavar="ID",
        show_default="worked out",
    ),
]
InputSize = Annotated[
    int | None,
    typer.Option(
        help="Side of the square input in pixels.",
        metavar="N",
        min=1,
        show_default="worked out",
    ),
]
Classes = Annotated[
    Path | None,
    typer.Option(
        help="File with one folder name per line, in the order of the model's outputs.",
        metavar="FILE",
        show_default="worked out",
    ),
]
MaxImages = Annotated[int, typer.Option(help="Clean images used at most.", metavar="N", min=1)]
Mixture = Annotated[
    Path | None,
    typer.Option(
        help="Suspect training set for dde and prune_dde; labels are not needed.",
        metavar="DIR",
        show_default=False,
    ),
]
Calibrations = Annotated[
    list[Path] | None,
    typer.Option(
        help="Reference population of `modelaudit calibrate` (repeatable), before those shipped.",
        metavar="FILE",
        show_default=False,
    ),
]
PopulationName = Annotated[
    str | None,
    typer.Option(
        "--id",
        help="Name of the population that reports carry.",
        metavar="NAME",
        show_default="the file's",
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        help="Seconds for the scan: scanners that would not fit are skipped; inf for no limit.",
        metavar="S",
        show_default="120 on a CPU",
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.")]
Seed = Annotated[int, typer.Option(help="Same seed, same report.", metavar="N", min=0)]
Alpha = Annotated[
    float,
    typer.Option(
        help="Significance level of the p-values that are shown, above 0 and below 1.",
        metavar="P",
    ),
]
Form = Annotated[Format, typer.Option("--format", help="How to print the report.")]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Write the report to this file and a short verdict to stdout.",
        metavar="FILE",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no logs.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show logs, library warnings and tracebacks.")]


def parse_setting(text: str) -> tuple[str, str, str]:
    """Split ``ID.FIELD=VALUE``; the engine knows the fields and their types."""
    left, equals, value = text.partition("=")
    scanner, dot, field = left.partition(".")
    if not (equals and dot and scanner and field):
        raise ConfigError(f"--set expects ID.FIELD=VALUE such as 'ban.epsilon=0.2', got {text!r}")
    return scanner, field, value


def parse_preprocessing(
    mean: str | None, std: str | None, preset: str | None
) -> Preprocessing | None:
    """Return what --mean, --std and --preprocess say together; None leaves it to the fit."""
    if mean is None and std is None:
        return None if preset is None else _preset(preset)
    if preset is not None:
        raise ConfigError("--preprocess and --mean/--std exclude each other; give one of them")
    if mean is None or std is None:
        raise ConfigError("--mean and --std belong together; give both or neither")
    return Preprocessing(id="custom", mean=_numbers("--mean", mean), std=_numbers("--std", std))


def _preset(name: str) -> Preprocessing:
    for preset in PRESETS:
        if preset.id == name:
            return preset
    raise ConfigError(
        f"--preprocess expects one of {', '.join(p.id for p in PRESETS)}, got {name!r}; "
        "use --mean and --std for another"
    )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as err:
        raise ConfigError(
            f"{option} expects numbers separated by commas such as 0.5,0.5,0.5, got {text!r}"
        ) from err
    if not all(math.isfinite(number) for number in numbers):
        raise ConfigError(f"{option} expects finite numbers, got {text!r}")
    return numbers


def check_budget(seconds: float | None) -> float | None:
    """Check the budget; None leaves it to the device, infinity means none."""
    if seconds is not None and not seconds > 0:
        raise ConfigError(f"--budget expects seconds above 0 or inf, got {seconds!r}")
    return seconds
