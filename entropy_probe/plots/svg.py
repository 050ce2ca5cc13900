"""Convert a figure to inline SVG with a description and a number under the pointer."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from entropy_probe.plots.marks import Mark, description, marks
from entropy_probe.plots.theme import INK

HEAVY = 20_000
"""Embedded images above this number of bytes are also tried as JPEG."""

SVG = "http://www.w3.org/2000/svg"
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot contain. Matplotlib writes those of a label, such as control characters, into the file."""
HREF = "{http://www.w3.org/1999/xlink}href"
PNG = "data:image/png;base64,"

ET.register_namespace("", SVG)
ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def inline_svg(
    figure: Figure, prefix: str, title: str, shown: Sequence[Mark] | None = None, style: str | None = None
) -> str:
    """Return a figure as an `svg` element for an HTML page.

    Black text and marks take the text colour of the page. Every number of the figure has an invisible rectangle, which
    browsers show as a tooltip.

    Args:
        figure: the figure.
        prefix: start of every id in the element, so that several figures fit on one page.
        title: start of the description for screen readers.
        shown: the numbers of the figure, if they are known; by default, `marks(figure)`.
        style: CSS of the element.

    Examples:
        >>> figure = Figure(figsize=(2, 1))
        >>> _ = figure.subplots().plot([1, 2], [3, 4], label="a")
        >>> svg = inline_svg(figure, "f1-", "A line.")
        >>> svg.startswith('<svg '), 'aria-label="A line. a 3 to 4."' in svg
        (True, True)
    """
    shown = marks(figure) if shown is None else shown
    box = figure.get_tightbbox().padded(0.1)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches=box)
    root = ET.fromstring(NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", buffer.getvalue().decode()))
    _remove(root, {"metadata", "style"})  # a style sheet would apply to the whole page
    _shrink_images(root)
    _rename_ids(root, prefix)
    _inherit_colours(root)
    # Black is the default fill of SVG, so it is not in the file. The other two come from the style sheet.
    root.attrib.update({"fill": "currentColor", "stroke-linejoin": "round", "stroke-linecap": "butt"})
    root.attrib.update({"role": "img", "aria-label": f"{title} {description(shown)}".strip()})
    if style is not None:
        root.set("style", style)
    tooltips = ET.SubElement(root, f"{{{SVG}}}g", {"class": "marks", "fill": "none", "pointer-events": "all"})
    tooltips.extend(_tooltip(mark, box) for mark in shown)
    return ET.tostring(root, encoding="unicode")


def _remove(root: ET.Element, names: set[str]) -> None:
    """Remove every element with one of the names."""
    unwanted = {f"{{{SVG}}}{name}" for name in names}
    for parent in root.iter():
        for child in [child for child in parent if child.tag in unwanted]:
            parent.remove(child)


def _shrink_images(root: ET.Element) -> None:
    """Store large images as JPEG, and remove the ids of images: equal images have equal ids, and nothing uses them."""
    for image in root.iter(f"{{{SVG}}}image"):
        image.attrib.pop("id", None)
        image.set(HREF, _lighter(image.get(HREF, "")))


def _rename_ids(root: ET.Element, prefix: str) -> None:
    """Number the ids in the order of the document.

    Some ids of matplotlib contain addresses in memory, so they differ between runs.
    """
    names: dict[str, str] = {}

    def renamed(name: str) -> str:
        return names.setdefault(name, f"{prefix}{len(names)}")

    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, renamed(value))
            elif key == HREF and value.startswith("#"):
                element.set(key, f"#{renamed(value[1:])}")
            elif "url(#" in value:
                start, _, rest = value.partition("url(#")
                name, _, end = rest.partition(")")
                element.set(key, f"{start}url(#{renamed(name)}){end}")


def _inherit_colours(root: ET.Element) -> None:
    """Replace the colours of text and black marks with the text colour of the page."""
    for element in root.iter():
        for key, value in element.attrib.items():
            if key in ("style", "fill", "stroke"):
                for colour in INK:
                    value = value.replace(colour, "currentColor")
                element.set(key, value)


def _tooltip(mark: Mark, page: Bbox) -> ET.Element:
    """Return an invisible rectangle over a mark, with its text as the title."""
    numbers = {
        "x": mark.box.xmin - page.xmin,
        "y": page.ymax - mark.box.ymax,
        "width": mark.box.xmax - mark.box.xmin,
        "height": mark.box.ymax - mark.box.ymin,
    }
    rectangle = ET.Element(f"{{{SVG}}}rect", {name: f"{72 * inches:.1f}" for name, inches in numbers.items()})
    ET.SubElement(rectangle, f"{{{SVG}}}title").text = mark.text()
    return rectangle


def _lighter(url: str) -> str:
    """Return the data URL of an image as JPEG, if the image is large and opaque, and the JPEG is smaller."""
    content = base64.b64decode(url.removeprefix(PNG))
    if not url.startswith(PNG) or len(content) < HEAVY:
        return url
    image = Image.open(io.BytesIO(content))
    if image.mode == "RGBA" and np.asarray(image)[..., 3].min() < 255:
        return url
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "jpeg", quality=85)
    if buffer.tell() >= len(content):
        return url
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
