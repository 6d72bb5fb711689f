"""The sizes of `docs/sparse.md` are those of the forms, counted by hand."""

import json
import math

import pytest

from experiments.bench import storage

RESULT = json.loads(storage.RESULT.read_text())


def test_the_tables_are_made_from_the_figures():
    text = storage.PAGE.read_text()
    assert storage.page(text, RESULT) == text


def test_the_sizes_by_hand():
    n = storage.SIDE**2
    for level, found in RESULT["bytes"].items():
        kept = n - math.floor(float(level) * n + 0.5)
        channels = storage.SIDE - math.floor(float(level) * storage.SIDE + 0.5)
        dense, _, bits, groups, rows, cut = found.values()
        assert dense == 4 * n and bits == 4 * kept + n // 8
        assert rows == 8 * kept + 4 * (storage.SIDE + 1)
        assert groups is None or groups == 4 * n // 2 + n // 2 * 2 // 8
        assert cut == pytest.approx(4 * (storage.SIDE + 1) * channels, rel=0.05)


def test_the_sizes_are_measured_anew():
    """To the byte; the archive and the text of the plan may change a little."""
    found, want = storage.sizes(0.98), RESULT["bytes"]["0.98"]
    assert found.keys() == want.keys()
    for form, size in found.items():
        loose = form == storage.COMPRESSED or "save_packed" in form
        if loose:
            size = pytest.approx(size, rel=0.05)
        assert want[form] == size, form
