"""The scale bench on a toy Llama, and its table in the documentation."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.bench import budgets, perplexity, scale

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _as_the_bench_runs():
    with jax.numpy_rank_promotion("allow"):
        yield


TOY = scale.Shape(layers=2, width=16, heads=4, kv=2, ff=32, vocabulary=50)


@pytest.mark.parametrize("form", scale.FORMS)
def test_a_toy_llama_is_cut_to_half_its_flops(form, monkeypatch):
    monkeypatch.setitem(scale.SHAPES, "toy", TOY)
    found = scale.measured("toy", form)
    assert found["parameters_compact"] < found["parameters"]
    assert found["groups_found"] > 2 and found["peak_mb"] > 0
    assert set(found["seconds"]) == {
        "trace",
        "groups",
        "select",
        "pack shapes",
        "compact trace",
    }


def test_both_forms_are_one_function():
    one, all_at_once = (scale.shapes(TOY, form) for form in scale.FORMS)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: 0.1 * rng.standard_normal(s.shape, np.float32), one)
    stacked = params | {
        "layers": jax.tree.map(lambda *x: np.stack(x), *params["layers"])
    }
    assert jax.tree.map(np.shape, stacked) == jax.tree.map(
        lambda s: s.shape, all_at_once
    )
    ids = np.arange(6)[None]
    a = jax.jit(scale.network(TOY, "unrolled"))(params, ids)
    b = jax.jit(scale.network(TOY, "scanned"))(stacked, ids)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("bench", "page"),
    [(scale, "language_models"), (perplexity, "language_models"), (budgets, "surgery")],
    ids=["scale", "perplexity", "budgets"],
)
def test_the_page_shows_the_figures_of_the_file(bench, page):
    name = bench.__name__.rsplit(".", 1)[-1]
    file = ROOT / "experiments" / "results" / f"bench_{name}.json"
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert bench.table(json.loads(file.read_text())) in text.split(bench.MARK)[1]
