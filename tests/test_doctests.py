"""The examples in the docstrings of the installed package run, and every exported function has one."""

import doctest
import importlib
import inspect
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


PACKAGES = [
    "entropy_probe",
    *(module.name for module in pkgutil.walk_packages(entropy_probe.__path__, "entropy_probe.") if module.ispkg),
]
WITHOUT_EXAMPLE = {
    "derive_gaussian", "derive_measured", "validate_sweep",  # deprecated
    "applied", "check_unscaled", "remove",  # in the examples of `apply` and `scaled`
    "interception_of", "quality", "stop_observing",
}  # fmt: skip


def test_exported_functions_have_an_example():
    exported = {
        name: inspect.unwrap(value)
        for package in map(importlib.import_module, PACKAGES)
        for name in getattr(package, "__all__", ())
        if inspect.isroutine(value := getattr(package, name))
    }
    without = {name for name, function in exported.items() if ">>>" not in (function.__doc__ or "")}
    assert without <= WITHOUT_EXAMPLE
