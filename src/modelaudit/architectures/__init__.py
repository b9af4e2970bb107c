"""Architectures: which modules a set of named tensors can belong to, and how they are built.

Only our own code, a library's, or a factory that the user names is ever run; nothing that a
checkpoint says is imported.
"""

from __future__ import annotations

from modelaudit.architectures._build import load
from modelaudit.architectures._identify import identify
from modelaudit.architectures._user_file import from_file
from modelaudit.architectures.base import ArchitectureFamily, Candidate

__all__ = ["ArchitectureFamily", "Candidate", "from_file", "identify", "load"]
