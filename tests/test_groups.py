"""Groups as data: labels in both forms, and what they refuse."""

import numpy as np
import pytest

from jprune._groups import AxisRef, Group, Run


def test_a_run_reads_as_its_tuple():
    run, plain = Run(2, 3, 7), (-1, -1, 0, 1, 2, -1, -1)
    assert tuple(run) == plain and len(run) == 7
    assert run[3] == 1 and run[2:4] == [0, 1] and run.count(-1) == 4
    np.testing.assert_array_equal(np.asarray(run), plain)
    one, other = (AxisRef(("w",), 0, "in", labels) for labels in (run, plain))
    np.testing.assert_array_equal(one.coordinates(3), other.coordinates(3))
    assert one == AxisRef(("w",), 0, "in", Run(2, 3, 7)) and hash(one) == hash(one)


@pytest.mark.parametrize("start", [-1, 5])
def test_a_run_lies_on_its_axis(start: int):
    with pytest.raises(ValueError, match=f"3 coordinates from position {start} do not"):
        Run(start, 3, 7)


@pytest.mark.parametrize("labels", [(0, 1, -1), (0, 1, 2, 3), Run(0, 2, 4)])
def test_labels_cover_the_coordinates(labels):
    with pytest.raises(ValueError, match=r"must cover the coordinates 0\.\.2"):
        Group("g", 3, (AxisRef(("w",), 0, "in", labels),))
