"""Turns a folder or an ``.npz`` into clean images, labels and class names; knows no models."""

from __future__ import annotations

from modelaudit.cleanset.clean_set import CleanSet, Split
from modelaudit.cleanset.images import ImageLimits
from modelaudit.cleanset.reader import read_clean_set

__all__ = ["CleanSet", "ImageLimits", "Split", "read_clean_set"]
