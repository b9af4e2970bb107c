"""The few non-ASCII characters of the terminal report, and their stand-ins."""

from __future__ import annotations

from dataclasses import dataclass

_BLOCKS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbols:
    """What the output stream can show.

    Attributes:
        has_blocks: whether block and box characters are available.
    """

    has_blocks: bool

    @classmethod
    def for_encoding(cls, encoding: str) -> Symbols:
        """Return the symbols that a stream of this encoding can carry."""
        try:
            f"{_BLOCKS}╭╮╰╯─│▸".encode(encoding)
        except UnicodeEncodeError:
            return cls(has_blocks=False)
        return cls(has_blocks=True)

    @property
    def arrow(self) -> str:
        """Return the mark before the target and the next step."""
        return "▸" if self.has_blocks else ">"

    def bar(self, fraction: float, width: int) -> str:
        """Return a bar that fills `fraction` (0 to 1) of `width` columns, padded to `width`.

        A fraction above zero always shows something, so that an empty bar means zero.
        """
        steps = 8 if self.has_blocks else 1
        filled = round(max(0.0, min(1.0, fraction)) * width * steps)
        if fraction > 0:
            filled = max(filled, 1)
        full, rest = divmod(filled, steps)
        bar = (_BLOCKS[8] if self.has_blocks else "#") * full
        if rest:
            bar += _BLOCKS[rest]
        return bar.ljust(width)
