"""The model under audit: preprocessing inside, split, neurons, counted passes, borrowed."""

from __future__ import annotations

from modelaudit.suspect.borrow import borrowed, state_digest
from modelaudit.suspect.edits import BatchNormMode, SiteEdit
from modelaudit.suspect.profile import Profile, SiteProfile, profile
from modelaudit.suspect.remembered import RememberedImages
from modelaudit.suspect.sites import Site, SiteKind
from modelaudit.suspect.split import Split
from modelaudit.suspect.suspect import PassCounter, Suspect

__all__ = [
    "BatchNormMode",
    "PassCounter",
    "Profile",
    "RememberedImages",
    "Site",
    "SiteEdit",
    "SiteKind",
    "SiteProfile",
    "Split",
    "Suspect",
    "borrowed",
    "profile",
    "state_digest",
]
