"""The examples in the docstrings of the installed package run, module by module."""

import doctest
import importlib
import pkgutil

import pytest

import entropy_probe

EXTENSIONS = ("_cpu", "_cpu_amx")
"""Compiled modules: they have no docstrings, and may not load on this processor."""
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(entropy_probe.__path__, "entropy_probe.")
    if module.name.rpartition(".")[2] not in (*EXTENSIONS, "__main__")
)


@pytest.mark.parametrize("name", ["entropy_probe", *MODULES])
def test_examples_of_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.endswith(".triton"):
        pytest.importorskip("triton")
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert not result.failed, "see the captured output"
