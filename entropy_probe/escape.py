"""Make untrusted text (prompts, names of models, layers and files) safe for a terminal or a spreadsheet."""

from __future__ import annotations

_ZERO_WIDTH_JOINER = "\u200d"
"""The only invisible character that is kept: many emoji are sequences joined by it."""


def for_terminal(text: str) -> str:
    r"""Replace control characters and direction marks by escape sequences. Line breaks are kept.

    Control characters can move the cursor or change the title of a terminal. Direction marks can make a name look
    like another.

    >>> for_terminal("red \x1b[31m")
    'red \\x1b[31m'
    """
    return "".join(c if c.isprintable() or c in ("\n", _ZERO_WIDTH_JOINER) else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    r"""Like `for_terminal`, with line breaks replaced too: a name cannot add a forged second line to a message.

    >>> one_line("a\nb")
    'a\\nb'
    """
    return for_terminal(text).replace("\n", "\\n")


def for_spreadsheet(text: str) -> str:
    """Prefix text with an apostrophe if a spreadsheet would read it as a formula.

    Full-width signs are included because some spreadsheets accept them.

    >>> for_spreadsheet("=1+1")
    "'=1+1"
    """
    return f"'{text}" if text.startswith(tuple("=+-@＝＋－＠\t\r\n")) else text
