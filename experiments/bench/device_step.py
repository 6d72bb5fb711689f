"""Optimizer steps on this device, one transformation after the other, float32 and bf16.

    python -m experiments.bench.device_step --out FILE [--depth 50] [--quick]

The rows of `optimizer_step`, SWD and GSM first, each in turns with the dense update at
the leaf shapes of ResNet-50; and one training step of ResNet-50, to which an update's
extra time is compared ("share of a step"). The file is written after every row, so
that a job that is cut off leaves what it had. `--quick` takes the shapes of ResNet-20,
three rows and ResNet-56's training step: a trial of the command itself.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import files
from experiments.bench.optimizer_step import (
    SLOW,
    drawn,
    optimizers,
    resnet_shapes,
)
from experiments.bench.timing import in_turns, machine
from experiments.models.resnet import resnet50, resnet56

FIRST = ("dense", "swd", "gsm")


def stepper(
    tx: optax.GradientTransformation, shapes: dict[str, tuple[int, ...]], dtype: Any
) -> Callable[[], None]:
    """One update, parameters and state donated; gradients fixed."""
    params = optax.tree.cast(drawn(shapes, 0, 0.02), dtype)
    grads = optax.tree.cast(drawn(shapes, 1, 1e-3), dtype)
    carried = [params, jax.jit(tx.init)(params)]

    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(update, donate_argnums=(0, 1))

    def step() -> None:
        carried[:] = jitted(*carried, grads)
        jax.block_until_ready(carried)

    step()
    return step


def training_seconds(dtype: Any, quick: bool) -> float:
    """A forward and backward pass in train mode, batch 128 (4 in a trial)."""
    model, side, batch = (resnet56(), 32, 4) if quick else (resnet50(), 224, 128)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(batch, side, side, 3)), dtype)
    variables: Any = optax.tree.cast(
        jax.jit(model.init)(jax.random.key(0), x[:1]), dtype
    )
    stats = {name: v for name, v in variables.items() if name != "params"}

    @jax.jit
    def gradient(params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            tree: Any = {"params": params, **stats}
            out, _ = model.apply(tree, x, train=True, mutable=list(stats))
            return jnp.mean(jnp.square(out.astype(jnp.float32)))

        return jax.grad(loss)(params)

    def step() -> None:
        jax.block_until_ready(gradient(variables["params"]))

    step()
    times = in_turns({"step": step}, 2 if quick else 10)
    return float(np.median(times["step"]))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--depth", type=int, default=50, help="of the ResNet's shapes")
    parser.add_argument("--quick", action="store_true", help="a trial")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    shapes = resnet_shapes(20 if args.quick else args.depth)
    every = {n: tx for n, tx in optimizers(shapes).items() if n not in SLOW}
    order = [*FIRST, *(n for n in every if n not in FIRST)]
    found: dict[str, Any] = {"machine": machine(), "rows": []}
    for dtype in ("float32", "bfloat16"):
        whole = training_seconds(dtype, args.quick)
        dense = stepper(every["dense"], shapes, dtype)
        for name in order[1:3] if args.quick else order[1:]:
            step = stepper(every[name], shapes, dtype)
            times = in_turns({"dense": dense, name: step}, 3 if args.quick else 15)
            more = float(np.median(times[name] - times["dense"]))
            found["rows"].append(
                {
                    "name": name,
                    "dtype": dtype,
                    "dense_ms": 1e3 * float(np.median(times["dense"])),
                    "ms": 1e3 * float(np.median(times[name])),
                    "over dense": float(np.median(times[name] / times["dense"])),
                    "share of a step": more / (whole + np.median(times["dense"])),
                }
            )
            print(found["rows"][-1], flush=True)
            files.write_json(args.out, found)


if __name__ == "__main__":
    main()
