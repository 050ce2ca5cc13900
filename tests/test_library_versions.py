"""The keyword for the dtype in each version of diffusers and transformers."""

import pytest

import entropy_probe as ep
from entropy_probe import library_versions
from entropy_probe.models import fingerprint


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


@pytest.mark.parametrize(
    ("name", "expected"), [("reference", "3:337714e8ec2cf3f2"), ("reference-dit", "3:e6c86692545d2428")]
)
def test_fingerprint_is_the_same_with_all_versions(name, expected):
    """A law or a run of one machine is recognised on another. Update the texts when the bundled models change."""
    assert fingerprint(ep.load(name, device="cpu")) == expected
