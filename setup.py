"""Build the compiled kernel: setup.cfg cannot declare it."""

import platform

from setuptools import Extension, setup


def kernel(module: str, *options: str) -> Extension:
    """Return one build of the kernel. It is optional: without GCC the package measures with torch operations."""
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
