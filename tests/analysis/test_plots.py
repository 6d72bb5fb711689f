"""`plot_sparsity`, `plot_history`: what is drawn, read back from the figure."""

import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from jprune.analysis import plot_history, plot_sparsity, report

LOG = [
    {"step": 0, "loss": 2.0, "phase": "train"},
    {"step": 5, "sparsity": 0.5},
    {"step": 9, "loss": 1.0, "phase": "train"},
    {"note": "no step: left out"},
]


def reports():
    half = {"a": np.array([1.0, 0.0]), "b": np.ones(4)}
    third = {"a": np.array([0.0, 0.0]), "b": np.array([1.0, 1, 1, 0])}
    return report(half, scope=".*"), report(third, scope=".*")


def test_sparsity_bars_are_the_reports_numbers():
    one, two = reports()
    figure = plot_sparsity(one, two, labels=["SWD", "GSM"])
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    widths = [[bar.get_width() for bar in group] for group in axes.containers]
    assert widths == [[50.0, 0.0], [100.0, 25.0]]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    totals = [np.asarray(line.get_xdata())[0] for line in axes.lines]
    np.testing.assert_allclose(totals, [100 / 6, 50.0])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["SWD", "GSM"]


def test_sparsity_draws_only_leaves_in_scope():
    tree = {"a": np.array([1.0, 0.0]), "b": np.ones(4)}
    figure = plot_sparsity(report(tree, scope={"a": True, "b": False}))
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a"]


def test_history_has_a_panel_for_each_number():
    figure = plot_history(LOG)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "sparsity"]
    assert figure.axes[-1].get_xlabel() == "step"
    np.testing.assert_array_equal(
        figure.axes[0].lines[0].get_xydata(), [[0, 2.0], [9, 1.0]]
    )


def test_history_of_several_runs_is_labeled(tmp_path):
    figure = plot_history({"dense": LOG, "swd": LOG[:2]}, ["loss"])
    assert [np.size(line.get_xdata()) for line in figure.axes[0].lines] == [2, 1]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dense", "swd"]
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_errors_say_what_to_do():
    with pytest.raises(TypeError, match=r"call `plot_sparsity\(report\(params\)\)`"):
        plot_sparsity({"a": np.ones(2)})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"at least one leaf in scope"):
        plot_sparsity()
    with pytest.raises(ValueError, match=r"each of the 1 reports, got 2"):
        plot_sparsity(reports()[0], labels=["a", "b"])
    with pytest.raises(ValueError, match=r"'step' and \['acc'\].*hold \['loss'"):
        plot_history(LOG, ["acc"])
    with pytest.raises(ValueError, match=r"a number; .* nothing else"):
        plot_history([])


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'jprune\[plots\]'"):
        plot_history(LOG)
