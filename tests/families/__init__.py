"""The table of model families of diffusers: small models with random weights."""

from pathlib import Path

from .early_transformers import FAMILIES as EARLY_TRANSFORMERS
from .family import Attention, Family
from .transformers import FAMILIES as TRANSFORMERS
from .unets import FAMILIES as UNETS
from .video import FAMILIES as VIDEO

FAMILIES = [*UNETS, *EARLY_TRANSFORMERS, *TRANSFORMERS, *VIDEO]

PAGE = Path(__file__).with_name("page.md")
"""The page, with a place for the table."""


def page() -> str:
    """Return docs/models.md."""
    return PAGE.read_text().replace("{rows}", "\n".join(_row(family) for family in FAMILIES))


def _row(family: Family) -> str:
    kinds = dict.fromkeys(_describe(attention) for attention in family.attention.values())
    strides = sorted({attention.stride for attention in family.attention.values() if attention.stride})
    notes = [family.notes] if family.notes else []
    notes += [f"`{name}` (over text tokens) does not use torch's function: not measured" for name in family.hidden]
    notes += ["linear self-attention has no softmax: an error names it"] if family.linear else []
    cells = [family.name, f"`{family.pipeline}`", ", ".join(kinds), ", ".join(map(str, strides))]
    cells += [family.image or "", "; ".join(notes)]
    return "| " + " | ".join(cells) + " |"


def _describe(attention: Attention) -> str:
    return attention.kind if attention.axes == "spatial" else f"{attention.kind} ({attention.axes})"
