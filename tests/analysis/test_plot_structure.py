"""Figures of structure and fronts: what is drawn, read back from the figure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import analysis, surgery


def net(p, x):
    return jax.nn.relu(x @ p["up"] + p["bias"][None]) @ p["down"]


PARAMS = {"up": jnp.ones((3, 8)), "bias": jnp.ones(8), "down": jnp.ones((8, 2))}


@pytest.fixture(scope="module")
def cut():
    deps = surgery.groups(net)(PARAMS, jnp.ones((1, 3)))
    keep = np.arange(8) < 6
    return deps, surgery.plan_from_keep(deps, {deps[0].id: keep})


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_axes_of_one_group_share_a_letter_and_frozen_ones_have_none(cut):
    deps, _ = cut
    figure = analysis.plot_groups(deps)
    rows = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert rows == ["bias", "down", "up"]
    # bias [8], down [8, 2], up [3, 8]: three axes of group A; input and output frozen.
    assert texts(figure) == ["A: 8", "A: 8", "2", "3", "A: 8"]


def test_a_plan_shows_what_stays(cut):
    figure = analysis.plot_groups(*cut)
    assert texts(figure) == ["A: 8 → 6", "A: 8 → 6", "2", "3", "A: 8 → 6"]
    filled = [b.get_width() for b in figure.axes[0].patches if b.get_fill()]
    np.testing.assert_allclose(filled, [0.675, 0.675, 0.9, 0.9, 0.675])


def test_parameters_beyond_the_most_are_counted(cut):
    figure = analysis.plot_groups(cut[0], most=2)
    assert len(figure.axes[0].get_yticklabels()) == 2
    assert figure.axes[0].get_xlabel() == "and 1 more parameters"


def test_widths_before_and_after(cut, tmp_path):
    figure = analysis.plot_widths(*cut)
    before, after = figure.axes[0].containers
    assert [bar.get_width() for bar in before] == [8]
    assert [bar.get_width() for bar in after] == [6]
    figure.savefig(tmp_path / "widths.png")
    assert (tmp_path / "widths.png").stat().st_size > 1000


def test_a_front_is_drawn_in_the_order_of_cost():
    runs = {"L1": [(50, 97.0), (25, 95.0)], "SWD": [(50, 98.0, 0.5)]}
    figure = analysis.plot_front(runs, dense=99.0)
    (axes,) = figure.axes
    lines = {c.get_label(): c.lines[0] for c in axes.containers}
    np.testing.assert_array_equal(lines["L1"].get_xydata(), [[25, 95.0], [50, 97.0]])
    assert [t.get_text() for t in axes.get_legend().get_texts()] == [
        "dense",
        "L1",
        "SWD",
    ]
    assert len({line.get_marker() for line in lines.values()}) == 2


def test_errors_say_what_to_do(cut):
    with pytest.raises(TypeError, match=r"groups\(fn\)\(params, \*args\)"):
        analysis.plot_groups([])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at least one point"):
        analysis.plot_front({"a": []})
    with pytest.raises(ValueError, match=r"points of \[2, 3\] numbers"):
        analysis.plot_front({"a": [(1, 2), (1, 2, 3)]})
