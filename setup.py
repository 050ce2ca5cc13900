"""Build the compiled kernel and the page on PyPI: setup.cfg cannot declare them."""

import os
import platform
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import Extension, setup

FOLDER = Path(__file__).parent
LIMITED_API = "0x030A0000"
"""The kernel uses the part of the C API that all Python versions from 3.10 on have, so one build serves them all."""

OPTIONAL = os.environ.get("ENTROPY_PROBE_KERNEL") != "required"
"""Without GCC, the package installs without the kernel and measures with torch operations. Wheels require it."""


def kernel(module: str, *options: str) -> Extension:
    """Return one build of the kernel."""
    return Extension(
        f"entropy_probe.statistics.{module}",
        sources=["entropy_probe/statistics/cpu.c"],
        define_macros=[("MODULE", module), ("Py_LIMITED_API", LIMITED_API)],
        extra_compile_args=["-O3", "-fno-math-errno", "-fopenmp", "-Wno-psabi", *options],
        extra_link_args=["-fopenmp"],
        optional=OPTIONAL,
        py_limited_api=True,
    )


def absolute_links(page: str) -> str:
    """Return a page whose relative links point to the repository, because PyPI has only the page."""
    settings = ConfigParser()
    settings.read(FOLDER / "setup.cfg", encoding="utf-8")
    urls = dict(line.split(" = ") for line in settings["metadata"]["project_urls"].strip().splitlines())

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link[1] else "blob"
        return f"{link[1]}[{link[2]}]({urls['Source']}/{kind}/main/{link[3]})"

    return re.sub(r"(!?)\[([^]]*)\]\((?![a-z]+:|#)([^)\s]+)\)", absolute, page)


amx = platform.system() == "Linux" and platform.machine() == "x86_64"
setup(
    long_description=absolute_links((FOLDER / "README.md").read_text(encoding="utf-8")),
    ext_modules=[
        kernel("_cpu"),
        *([kernel("_cpu_amx", "-march=x86-64-v4", "-mamx-tile", "-mamx-bf16")] if amx else []),
    ],
)
