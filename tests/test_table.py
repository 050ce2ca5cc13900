"""The result of a capture behaves like its table."""

import copy
import pickle

import pandas as pd
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from entropy_probe.attention import Captured, capture
from entropy_probe.attention.table import COLUMNS


class Attention(torch.nn.Module):
    """One attention layer."""

    def forward(self, x):
        return scaled_dot_product_attention(x, x, x)


@pytest.fixture(scope="module")
def captured():
    model = Attention()
    with capture(model) as table:
        model(torch.randn(1, 2, 9, 4, generator=torch.Generator().manual_seed(0)))
    return table


def test_iterates_over_columns(captured):
    assert list(captured) == list(captured.columns) == list(captured.frame()) == list(COLUMNS)


def test_contains_its_columns_only(captured):
    assert "entropy" in captured
    assert "entropie" not in captured
    assert 0 not in captured  # a row number


def test_has_one_row_per_head(captured):
    assert len(captured) == len(captured["head"]) == 2
    assert captured["head"].tolist() == [0, 1]


def test_methods_equal_the_methods_of_the_table(captured):
    frame = captured.frame()
    pd.testing.assert_frame_equal(captured.head(1), frame.head(1))
    pd.testing.assert_frame_equal(captured.query("head == 1"), frame.query("head == 1"))
    assert captured.groupby("head")["entropy"].mean().tolist() == frame["entropy"].tolist()
    assert captured.entropy.tolist() == frame["entropy"].tolist()
    assert captured.iloc[1]["head"] == 1
    assert captured.shape == (2, len(COLUMNS))


def test_becomes_a_data_frame(captured):
    pd.testing.assert_frame_equal(pd.DataFrame(captured.frame()), captured.frame())


def test_changing_a_table_leaves_the_capture_unchanged(captured):
    table = captured.frame()
    table["entropy"] = 0.0
    captured.insert(0, "entropy_again", 0.0)
    assert "entropy_again" not in captured.frame()
    assert (captured["entropy"] > 0).all()


def test_unknown_name_is_an_attribute_error(captured):
    with pytest.raises(AttributeError, match="'Captured' object has no attribute 'entropie'"):
        _ = captured.entropie
    assert not hasattr(captured, "_ipython_display_")
    assert not hasattr(captured, "__array__")


def test_empty_capture_has_the_columns():
    assert list(Captured()) == list(COLUMNS)
    assert Captured().empty


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table))])
def test_copies_have_the_same_table(captured, copied):
    pd.testing.assert_frame_equal(copied(captured).frame(), captured.frame())


@pytest.mark.filterwarnings("ignore:no attention call")
def test_a_table_without_rows_has_numbers():
    with capture(torch.nn.Identity()) as table:
        table_of_nothing = table.frame()
    assert table_of_nothing.empty
    assert list(table_of_nothing) == list(COLUMNS)
    assert torch.tensor(table_of_nothing["entropy"].to_numpy()).dtype == torch.float32
