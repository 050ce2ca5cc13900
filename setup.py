"""The one part of the package that setup.cfg cannot declare: its compiled kernel."""

import platform

from setuptools import Extension, setup


def kernel(module: str, *options: str) -> Extension:
    """A build of the kernel; without GCC the package installs all the same, and measures by torch's own operations."""
    return Extension(
        f"entropy_probe.statistics.{module}",
        sources=["entropy_probe/statistics/cpu.c"],
        define_macros=[("MODULE", module)],
        extra_compile_args=["-O3", "-fno-math-errno", "-fopenmp", "-Wno-psabi", *options],
        extra_link_args=["-fopenmp"],
        optional=True,
    )


amx = platform.system() == "Linux" and platform.machine() == "x86_64"
setup(
    ext_modules=[kernel("_cpu"), *([kernel("_cpu_amx", "-march=x86-64-v4", "-mamx-tile", "-mamx-bf16")] if amx else [])]
)
