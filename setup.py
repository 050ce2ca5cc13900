"""The one part of the package that setup.cfg cannot declare: its compiled kernel."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "entropy_probe.statistics._cpu",
            sources=["entropy_probe/statistics/cpu.c"],
            extra_compile_args=["-O3", "-fopenmp", "-Wno-psabi"],
            extra_link_args=["-fopenmp"],
            optional=True,  # without GCC the package installs all the same, and measures by torch's own operations
        )
    ]
)
