"""Write docs/models.md from the table of families."""

from pathlib import Path

from . import page

Path("docs/models.md").write_text(page())
