"""Writes docs/models.md from the matrix."""

from pathlib import Path

from . import page

Path("docs/models.md").write_text(page())
