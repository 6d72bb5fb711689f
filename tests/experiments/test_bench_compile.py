"""The bench of compile times: its shapes, and one row of it."""

import json

import numpy as np
import optax

from experiments.bench import compile_time
from jprune import transforms


def test_llama_has_8_billion_weights_in_291_leaves():
    shapes = compile_time.llama_shapes()
    assert len(shapes) == 291
    assert sum(int(np.prod(s)) for s in shapes.values()) == 8_030_261_248


def test_a_row_counts_and_a_second_run_resumes(tmp_path, monkeypatch):
    tx = optax.chain(
        optax.sgd(0.1), transforms.keep_masked(lambda p: {"w": p["w"] > 0})
    )
    row = compile_time.row(tx, {"w": (16, 16)})
    assert row["CPU seconds"] >= row["lowering, CPU seconds"] > 0
    assert row["instructions compiled"] > 3 and row["temporaries / parameters"] == 0
    out = tmp_path / "rows.json"
    monkeypatch.setattr(compile_time, "row", lambda tx, shapes: {"CPU seconds": 1.0})
    compile_time.run(["dense"], False, out)
    monkeypatch.setattr(compile_time, "row", lambda tx, shapes: {"CPU seconds": 2.0})
    again = compile_time.run(["dense", "keep_masked"], False, out)
    assert again == json.loads(out.read_text())
    rows = again["networks"]["ResNet-50"]["rows"]
    assert [r["CPU seconds"] for r in rows.values()] == [1.0, 2.0]
