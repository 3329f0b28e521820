"""The encoder that tries a source reads whatever the source hands out."""

from __future__ import annotations

import numpy as np
import pytest

from janus_plugins.core.errors import BadSample
from janus_plugins.testing.partner_processor import NUMBERS, _numbers


@pytest.mark.parametrize(
    "value",
    [
        np.ones((8, 8), np.complex64) * (1 + 2j),
        {"map": np.ones((3, 4), np.complex64), "rate": 2.0, "name": "radar", "note": None},
        {"bytes": b"12", "path": "here.npy"},
        [1, 2, 3],
    ],
)
def test_numbers_of_any_kind_are_read(value):
    numbers = _numbers(value)
    assert numbers.shape == (NUMBERS,)
    assert numbers.dtype == np.float32
    assert np.isfinite(numbers).all()


def test_a_complex_number_counts_with_both_parts():
    assert not np.array_equal(_numbers(np.array([1 + 2j])), _numbers(np.array([1 + 3j])))


@pytest.mark.parametrize("value", [object(), {}, {"map": None}, {"map": object()}, np.zeros(0)])
def test_what_holds_no_numbers_is_refused(value):
    with pytest.raises(BadSample):
        _numbers(value)
