"""The way to ONNX that the documentation shows: the closed jaxpr, a free batch size."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.extend.core import jaxpr_as_fun

from jprune import surgery

jax2onnx = pytest.importorskip("jax2onnx", reason="the optional extra `onnx`")
onnxruntime = pytest.importorskip("onnxruntime", reason="the optional extra `onnx`")


def net(p, x):
    return jax.nn.relu(x @ p["w1"] + p["b1"][None]) @ p["w2"]


@pytest.mark.slow
def test_a_compact_function_runs_in_onnxruntime_at_any_batch_size():
    k = jax.random.split(jax.random.key(0), 3)
    params = {
        "w1": jax.random.normal(k[0], (5, 8)),
        "b1": jax.random.normal(k[1], (8,)),
        "w2": jax.random.normal(k[2], (8, 3)),
    }
    deps = surgery.groups(net)(params, jnp.ones((4, 5)))
    plan = surgery.select(deps, deps.scores(params), sparsity=0.5)
    small, compact = surgery.shrink(net, plan), plan.pack(params)
    (batch,) = export.symbolic_shape("batch")
    free = jax.ShapeDtypeStruct((batch, 5), jnp.float32)
    closed = jax.make_jaxpr(lambda x: small(compact, x))(free)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter's own
        model = jax2onnx.to_onnx(lambda x: jaxpr_as_fun(closed)(x)[0], [("batch", 5)])
        session = onnxruntime.InferenceSession(model.SerializeToString())
    name = session.get_inputs()[0].name
    for rows in (1, 7):
        x = np.random.default_rng(rows).normal(size=(rows, 5)).astype(np.float32)
        want = net(plan.zero(params), x)
        np.testing.assert_allclose(session.run(None, {name: x})[0], want, atol=1e-5)
