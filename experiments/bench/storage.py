"""What each form of a pruned kernel takes on disk, and what sparse rows take in time.

    python -m experiments.bench.storage

A kernel of 1024 x 1024 float32, its smallest weights removed, in every form that jprune
writes. Products of 64 rows with it are timed in turns, dense, masked, and as compressed
sparse rows. Writes `experiments/results/bench_storage.json` and the tables of
`docs/sparse.md`.
"""

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.timing import in_turns, machine
from jprune import analysis, compress, masks, surgery

RESULT = Path("experiments/results/bench_storage.json")
PAGE = Path("docs/sparse.md")
SIDE, BATCH, ROUNDS = 1024, 64, 60
LEVELS = (0.5, 0.9, 0.98)
N_OF_M = {0.5: (2, 4)}
BEGIN, END = "<!-- {}: made by experiments.bench.storage -->", "<!-- end -->"
COMPRESSED = "zeros in place, `np.savez_compressed`"


def kernel() -> dict[str, jax.Array]:
    """The dense kernel."""
    rng = np.random.default_rng(0)
    return {"kernel": jnp.asarray(rng.normal(size=(SIDE, SIDE)), jnp.float32)}


def pruned(params: dict[str, jax.Array], sparsity: float) -> dict[str, jax.Array]:
    """Its smallest weights at zero."""
    return masks.apply(masks.unstructured(params, sparsity), params)


def sizes(sparsity: float) -> dict[str, int | None]:
    """Bytes of each form; None where the form has no such sparsity."""
    dense = kernel()
    params = pruned(dense, sparsity)
    file = io.BytesIO()
    arrays: dict[str, Any] = {k: np.asarray(v) for k, v in params.items()}
    np.savez_compressed(file, **arrays)
    rows = compress.to_bcsr(params["kernel"])
    found: dict[str, int | None] = {
        "dense, or zeros in place": dense["kernel"].nbytes,
        COMPRESSED: file.getbuffer().nbytes,
        "values and one bit an entry (`analysis.report`)": analysis.report(
            params
        ).total.bytes_stored,
        "2:4 values and places (`compress.pack_n_of_m`)": None,
        "compressed rows (`compress.to_bcsr`)": sum(
            x.nbytes for x in (rows.data, rows.indices, rows.indptr)
        ),
        "channels removed (`surgery.save_packed`)": _packed(sparsity),
    }
    if sparsity in N_OF_M:
        n, m = N_OF_M[sparsity]
        params = masks.apply(masks.n_of_m(dense, n, m), dense)
        packed = compress.pack_n_of_m(params, n, m)
        found["2:4 values and places (`compress.pack_n_of_m`)"] = packed[
            "kernel"
        ].nbytes
    return found


def _packed(sparsity: float) -> int:
    """The file of the kernel without that share of its outputs, the plan inside."""

    def net(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(x @ p["kernel"]) * p["scale"][None], axis=1)

    params = {**kernel(), "scale": jnp.ones(SIDE)}
    deps = surgery.groups(net)(params, jax.ShapeDtypeStruct((1, SIDE), jnp.float32))
    plan = surgery.select(deps, deps.scores(params), ratios={"kernel:1": sparsity})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        surgery.save_packed(path, plan, plan.pack(params))
        return path.stat().st_size


def times(sparsity: float) -> dict[str, float]:
    """Median milliseconds, in turns: the quotients are fair under load."""
    dense = kernel()
    params = pruned(dense, sparsity)
    rows = compress.to_bcsr(params["kernel"])
    x = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, SIDE)), jnp.float32)
    product = jax.jit(jnp.matmul)
    sparse = jax.jit(compress.sparse_dot)
    assert np.allclose(sparse(x, rows), product(x, params["kernel"]), atol=1e-3)
    calls = {
        "dense": lambda: product(x, dense["kernel"]).block_until_ready(),
        "masked": lambda: product(x, params["kernel"]).block_until_ready(),
        "compressed rows": lambda: sparse(x, rows).block_until_ready(),
    }
    seconds = in_turns(calls, ROUNDS)  # type: ignore[arg-type]
    found = {name: float(np.median(s)) * 1e3 for name, s in seconds.items()}
    ratio = np.median(seconds["dense"] / seconds["compressed rows"])
    return {**found, "dense over rows": float(ratio)}


def size_table(found: dict[str, dict[str, int | None]]) -> str:
    """Kilobytes on disk by form and sparsity."""
    lines = ["| form | " + " | ".join(f"{s:.0%}" for s in LEVELS) + " |"]
    lines += ["|---|" + "---:|" * len(LEVELS)]
    for form in found[str(LEVELS[0])]:
        cells = [found[str(s)][form] for s in LEVELS]
        shown = ["-" if n is None else f"{n / 1000:,.0f}" for n in cells]
        lines.append(f"| {form} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def time_table(found: dict[str, dict[str, float]]) -> str:
    """Milliseconds by form and sparsity."""
    lines = ["| zeros | dense, ms | masked, ms | compressed rows, ms | dense / rows |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for level, row in found.items():
        cells = [f"{row[n]:.2f}" for n in ("dense", "masked", "compressed rows")]
        cells.append(f"{row['dense over rows']:.1f}")
        lines.append(f"| {float(level):.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(text: str, result: dict[str, Any]) -> str:
    """`docs/sparse.md` with both tables put in."""
    tables = {"sizes": size_table(result["bytes"]), "times": time_table(result["ms"])}
    for name, table in tables.items():
        begin = BEGIN.format(name)
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table}\n{END}{rest.split(END, 1)[1]}"
    return text


def main() -> None:
    result = {
        "machine": machine(),
        "bytes": {str(s): sizes(s) for s in LEVELS},
        "ms": {str(s): times(s) for s in LEVELS},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(), result))


if __name__ == "__main__":
    main()
