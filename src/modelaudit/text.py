"""Text for every report: what comes from strangers' files made fit to print, and points."""

from __future__ import annotations


def escape_untrusted(text: str, limit: int = 200) -> str:
    r"""Return `text` on one line, without characters that act on a terminal or reorder a line.

    Control characters, newlines, bidirectional marks, invisible and unassigned characters, lone
    surrogates and the backslash itself become ``\xNN``, ``\uNNNN``, ``\UNNNNNNNN`` or ``\\``, so
    that two different texts never print alike unless they are cut.

    Args:
        text: any text, however hostile.
        limit: number of characters of the result, at least 1; a longer one ends in ``…``.

    Returns:
        Printable text of at most `limit` characters.

    Example:
        >>> escape_untrusted("a\nb")
        'a\\nb'
    """
    pieces: list[str] = []
    length = 0
    for character in text[: limit + 1]:
        piece = character if character.isprintable() and character != "\\" else _escape(character)
        length += len(piece)
        if length > limit:
            return _cut("".join(pieces), limit)
        pieces.append(piece)
    return "".join(pieces)


def points_text(fraction: float) -> str:
    """Return a fraction as percentage points with one decimal; zero has no sign.

    Example:
        >>> points_text(-0.0201), points_text(-0.0001)
        ('-2.0', '0.0')
    """
    # Adding zero turns the negative zero that rounding leaves into zero.
    return f"{round(100 * fraction, 1) + 0.0:.1f}"


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def _cut(text: str, limit: int) -> str:
    return text[: limit - 1] + "…"
