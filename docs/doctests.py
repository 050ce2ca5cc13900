"""Format the doctests of docstrings as code on the site.

The Google style recognises doctests only in a section `Examples:`. Ours directly follow the text.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

DOCTEST = re.compile(r"^>>> (?:.+\n?)+", re.MULTILINE)
"""A doctest: from its first prompt to the next empty line."""


class Doctests(Extension):
    """Fence every doctest as `pycon`."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(
                lambda match: f"```pycon\n{match[0].rstrip()}\n```\n", obj.docstring.value
            )
