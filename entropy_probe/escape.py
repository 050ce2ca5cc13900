"""Text from elsewhere (prompts, names of models, layers and files) where a terminal or a spreadsheet reads it."""

from __future__ import annotations

_JOINER = "\u200d"
"""Of the characters that do not show, the one that emoji are made with."""


def for_terminal(text: str) -> str:
    """Text with control characters and marks of writing direction spelt out: they steer terminals, and fool eyes."""
    return "".join(c if c.isprintable() or c in ("\n", _JOINER) else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """The same without line breaks: a message that holds a name from elsewhere has no second line to forge."""
    return for_terminal(text).replace("\n", "\\n")


def for_spreadsheet(text: str) -> str:
    """Text that a spreadsheet takes for text, and not for a formula; full-width signs begin one in some."""
    return f"'{text}" if text.startswith(tuple("=+-@＝＋－＠\t\r\n")) else text
