"""Make untrusted text (prompts, names of models, layers and files) safe for each output: one function per format.

Every name from a model or a file passes through one of these functions before it is printed or written to a page.
"""

from __future__ import annotations

import re

_ZERO_WIDTH_JOINER = "\u200d"
"""The only invisible character that is kept: many emoji are sequences joined by it."""


def for_terminal(text: str) -> str:
    r"""Replace control characters and direction marks by escape sequences. Line breaks are kept.

    Control characters can move the cursor or change the title of a terminal. Direction marks can make a name look
    like another. Use it for text of several lines, and `one_line` for a name.

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


def for_markdown(text: str) -> str:
    r"""Return a name as a code span of Markdown: no heading, HTML, image, link or mention in it has an effect.

    A vertical bar gets a backslash, because it would end the cell of a table.

    >>> for_markdown("<b>mid</b>"), for_markdown("a`b"), for_markdown("a\n# b|c")
    ('`<b>mid</b>`', '``a`b``', '`a\\n# b\\|c`')
    """
    line = one_line(text).replace("|", "\\|")
    ticks = max(map(len, re.findall("`+", line)), default=0)
    space = " " if not line.strip() or line[0] in "` " or line[-1] in "` " else ""
    return f"{'`' * (ticks + 1)}{space}{line}{space}{'`' * (ticks + 1)}"


def for_xml(text: str) -> str:
    r"""Replace the characters that XML forbids, even as entities. The writer of the XML escapes `<`, `&` and quotes.

    >>> for_xml("mid\x00")
    'mid\\x00'
    """
    return for_terminal(text)


def for_html(text: str) -> str:
    r"""Return text for a sentence of a page. Text that runs from right to left does not affect the sentence.

    The template escapes `<`, `&` and quotes.

    >>> for_html("a cat")
    '\u2068a cat\u2069'
    """
    return f"\u2068{for_terminal(text)}\u2069"


def for_file_name(text: str) -> str:
    """Return the start of a text as part of a file name: small letters, digits and hyphens. It may be empty.

    >>> for_file_name("A red apple, 35 mm photo")
    'a-red-apple-35-mm-photo'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:40].strip("-")


def for_spreadsheet(text: str) -> str:
    """Prefix text with an apostrophe if a spreadsheet would read it as a formula.

    Full-width signs are included because some spreadsheets accept them.

    >>> for_spreadsheet("=1+1")
    "'=1+1"
    """
    return f"'{text}" if text.startswith(tuple("=+-@＝＋－＠\t\r\n")) else text
