"""The keyword for the dtype in each version of diffusers and transformers."""

import pytest

from entropy_probe import library_versions


@pytest.mark.parametrize(
    ("library", "version", "keyword"),
    [
        ("diffusers", "0.35.2", "torch_dtype"),
        ("diffusers", "0.39.0", "torch_dtype"),
        ("diffusers", "0.40.0.dev0", "torch_dtype"),
        ("diffusers", "0.40.0", "dtype"),
        ("diffusers", "1.0.0", "dtype"),
        ("transformers", "4.55.4", "torch_dtype"),
        ("transformers", "4.56.0", "dtype"),
        ("transformers", "5.24.0", "dtype"),
    ],
)
def test_dtype_has_the_keyword_that_the_version_reads(monkeypatch, library, version, keyword):
    monkeypatch.setattr(library_versions, "version", {library: version}.__getitem__)
    assert library_versions.dtype_argument(library, "float32") == {keyword: "float32"}
