"""``--device``."""

from __future__ import annotations

from enum import StrEnum

from modelaudit.errors import ConfigError


class Device(StrEnum):
    """``--device``."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def resolve_device(device: Device) -> str:
    """Return the device that ``--device`` means.

    Raises:
        ConfigError: a CUDA device was asked for and there is none.
    """
    if device is Device.CPU:
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device is Device.CUDA:
        raise ConfigError(
            "--device cuda: no CUDA device is available to this installation of torch; "
            "use --device cpu or auto"
        )
    return "cpu"
