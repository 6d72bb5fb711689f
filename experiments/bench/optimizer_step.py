"""Optimizer steps: every jprune transformation against the dense one.

    python -m experiments.bench.optimizer_step [--out FILE] [--quick]

The leaf shapes are those of ResNet-20 (0.27 M weights) and ResNet-50 (25.6 M). Each row
times one jitted update alone, no forward and no backward, on parameters and gradients
drawn once; the optimizers run in turns, so that a busy machine slows all of them alike.
Reported are medians and the ratio to SGD with momentum in the same run, for an ordinary
step and, where a method ranks only at some steps, for a step that does. "first" is the
time to compile and run once.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench.timing import in_turns, machine
from jprune import compress, masks, transforms
from jprune.surgery import AxisRef, Group

SLOW = ("trp, truncation",)
"""Rows of seconds, an SVD of every kernel: one round, and no bound."""

FAR = 2**30
"""A period or an end that the timed steps never reach."""


def resnet_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """Leaf shapes of ResNet-20 for CIFAR or ResNet-50 for ImageNet."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, size: int, inner: int, outer: int) -> None:
        shapes[f"{name}/kernel"] = (size, size, inner, outer)
        shapes[f"{name}_bn/scale"] = shapes[f"{name}_bn/bias"] = (outer,)

    if depth == 20:
        conv("stem", 3, 3, 16)
        width = 16
        for stage in range(3):
            for block in range(3):
                outer = 16 << stage
                conv(f"s{stage}b{block}c1", 3, width, outer)
                conv(f"s{stage}b{block}c2", 3, outer, outer)
                width = outer
        shapes["head/kernel"], shapes["head/bias"] = (64, 10), (10,)
        return shapes
    conv("stem", 7, 3, 64)
    width = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            inner, outer = 64 << stage, 256 << stage
            conv(f"s{stage}b{block}c1", 1, width, inner)
            conv(f"s{stage}b{block}c2", 3, inner, inner)
            conv(f"s{stage}b{block}c3", 1, inner, outer)
            if block == 0:
                conv(f"s{stage}b{block}down", 1, width, outer)
            width = outer
    shapes["head/kernel"], shapes["head/bias"] = (2048, 1000), (1000,)
    return shapes


def drawn(shapes: dict[str, tuple[int, ...]], seed: int, scale: float) -> Any:
    """Normal arrays of these shapes."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(scale * rng.standard_normal(shape, np.float32))
        for name, shape in shapes.items()
    }


def sgd() -> optax.GradientTransformation:
    """The dense reference: weight decay and heavy-ball momentum."""
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(1e-4, momentum=0.9))


def history(sparsity: Any, begin: int) -> optax.GradientTransformation:
    last = transforms.prune_by_weight_history(
        sparsity, end=2 * FAR - 2, begin=begin, every=1
    )
    return optax.chain(sgd(), last)


def grown(period: int, steps: int) -> optax.GradientTransformation:
    return transforms.grow_and_prune(
        sgd(), 0.9, partitions=4, period=period, steps=steps
    )


def inner_groups(shapes: Mapping[str, tuple[int, ...]]) -> list[Group]:
    """The widths inside the blocks: a convolution, its norm, and its one reader."""
    groups = []
    for name, shape in shapes.items():
        block, dot, number = name.removesuffix("/kernel").rpartition("c")
        reader = f"{block}c{int(number) + 1}/kernel" if number.isdigit() else None
        if not dot or reader not in shapes:
            continue
        norm = name.replace("/kernel", "_bn")
        members = (
            AxisRef((name,), 3, "out"),
            AxisRef((f"{norm}/scale",), 0, "scale"),
            AxisRef((f"{norm}/bias",), 0, "bias"),
            AxisRef((reader,), 2, "in"),
        )
        groups.append(Group(name, shape[3], members))
    return groups


def by_groups(
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, optax.GradientTransformation]:
    """The rows of methods on channels; half of every inner width is to go."""
    groups, lr, mu = inner_groups(shapes), 1e-4, 5e-4
    clusters = compress.find_clusters({}, groups, sparsity=0.5, how="even")
    keeps = {g.id: jnp.arange(g.size) % 2 == 0 for g in groups}
    return {
        "c-sgd": transforms.csgd(lr, groups, clusters, strength=3e-3, weight_decay=mu),
        "network slimming": transforms.network_slimming(lr, strength=1e-4),
        "masksparsity": transforms.masksparsity(lr, groups, keeps),
        "tpp": transforms.tpp(
            lr, groups, keeps, total_steps=FAR, end=FAR // 2, weight_decay=mu
        ),
        "prune_unmoved": optax.chain(
            sgd(), transforms.prune_unmoved(every=FAR, end=FAR)
        ),
    }


def optimizers(
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, optax.GradientTransformation]:
    """Each row's optimizer; a row is an ordinary step unless it says otherwise."""
    lr, mu = 1e-4, 5e-4

    def swd(remove: bool) -> optax.GradientTransformation:
        steps = 10**6
        return transforms.swd(
            lr, mu=mu, total_steps=steps, sparsity=0.9, a_max=1e3, remove=remove
        )

    def gradual(sparsity: Any, begin: int) -> optax.GradientTransformation:
        last = transforms.prune_gradually(sparsity, end=2 * FAR - 2, begin=begin)
        return optax.chain(sgd(), last)

    def trp(every: int, **settings: Any) -> optax.GradientTransformation:
        return transforms.trp(
            lr, every=every, scope=wide_convolutions, weight_decay=mu, **settings
        )

    def decayed(every: int) -> optax.GradientTransformation:
        return optax.chain(
            transforms.add_growing_decay(1e-4, 0.9, every=every, limit=1e9), sgd()
        )

    # The axis of three channels of the first kernel does not divide.
    fours = r"^(s\d|head).*/kernel$"
    staged = transforms.prune_to_n_of_m(2, 4, begin=FAR, end=2 * FAR - 2, scope=fours)

    ranked = optax.constant_schedule(0.9)
    return {
        "dense": sgd(),
        "swd": swd(True),
        "swd without removal": swd(False),
        "gsm": transforms.gsm(lr, sparsity=0.9, weight_decay=mu, momentum=0.9),
        "gradual": gradual(0.9, FAR),
        "gradual, mask update": gradual(ranked, 0),
        "weight history": history(0.9, FAR),
        "weight history, mask update": history(ranked, 0),
        "grow_and_prune": grown(FAR, 1),
        "grow_and_prune, mask update": handing_over(grown(2, FAR)),
        "keep_masked": optax.chain(
            sgd(), transforms.keep_masked(lambda p: masks.unstructured(p, 0.9))
        ),
        "trp": trp(FAR),
        "trp, truncated by the loop": trp(FAR, by_loop=True),
        "trp, truncation": trp(1, nuclear=None),
        "iss-p": optax.chain(sgd(), transforms.shrink_softly(0.9, end=FAR)),
        "iss-r": decayed(FAR),
        "iss-r, mask update": decayed(1),
        "2:4 in stages": optax.chain(sgd(), staged),
        "sr-ste": transforms.sr_ste(lr, 2, 4, scope=fours),
        **moving_masks(),
        **by_groups(shapes),
    }


def moving_masks() -> dict[str, optax.GradientTransformation]:
    """The rows of `drop_and_grow`."""

    def regrown(every: int, **how: Any) -> optax.GradientTransformation:
        # The number of steps is never 0 modulo a period it does not reach.
        return transforms.drop_and_grow(sgd(), 0.9, every=every, **how)

    set_like: dict[str, Any] = {"grow": "random", "also_step": True}
    return {
        "rigl": regrown(FAR),
        "rigl, mask update": regrown(1),
        "set": regrown(FAR, **set_like),
        "set, mask update": regrown(1, **set_like),
        "static sparse": regrown(FAR, drop_fraction=0.0),
    }


def wide_convolutions(params: Any) -> Any:
    """The kernels that TRP truncates: larger than 1 x 1, all but the first."""

    def taken(path: str, leaf: Any) -> bool:
        return leaf.ndim == 4 and leaf.shape[0] > 1 and not path.startswith("stem")

    return masks.prunable(params, include=taken)


def handing_over(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Every update that of a step's end: GaP ranks only at the first of each step."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return tx.update(updates, state._replace(count=jnp.int32(2)), params)

    return optax.GradientTransformation(tx.init, update)


def measure(depth: int, repeats: int) -> dict[str, Any]:
    """Milliseconds and ratios to dense of every optimizer at these leaf shapes."""
    shapes = resnet_shapes(depth)
    compile_seconds: dict[str, float] = {}
    steps = {}
    for name, tx in optimizers(shapes).items():
        start = time.perf_counter()
        steps[name] = _stepper(tx, shapes)
        compile_seconds[name] = time.perf_counter() - start
    times = in_turns({n: s for n, s in steps.items() if n not in SLOW}, repeats)
    dense = dict.fromkeys(times, times["dense"])
    slow = in_turns({n: steps[n] for n in ("dense", *SLOW)}, 1)
    times |= {n: slow[n] for n in SLOW}
    dense |= dict.fromkeys(SLOW, slow["dense"])
    return {
        "parameters": sum(int(np.prod(s)) for s in shapes.values()),
        "milliseconds": {n: 1e3 * float(np.median(t)) for n, t in times.items()},
        "first call, seconds": compile_seconds,
        # Times of one round were taken side by side; their ratios are compared.
        "rows": {n: float(np.median(t / dense[n])) for n, t in times.items()},
    }


def _stepper(
    tx: optax.GradientTransformation, shapes: dict[str, tuple[int, ...]]
) -> Callable[[], None]:
    """One update, parameters and state donated and carried along; gradients fixed."""
    params, grads = drawn(shapes, 0, 0.02), drawn(shapes, 1, 1e-3)
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


def table(result: Mapping[str, Any]) -> str:
    """The rows as text."""
    lines = []
    for name, part in result["networks"].items():
        lines.append(f"{name}: {part['parameters']:,} parameters")
        for row, ratio in part["rows"].items():
            ms = part["milliseconds"][row]
            first = part["first call, seconds"][row]
            lines.append(
                f"  {row:24s} {ms:9.2f} ms {ratio:7.2f} x dense   first {first:5.1f} s"
            )
    return "\n".join(lines)


def run(quick: bool = False) -> dict[str, Any]:
    """All measurements as one JSON-ready value."""
    networks = {
        "ResNet-20": measure(20, 15 if quick else 41),
        "ResNet-50": measure(50, 5 if quick else 15),
    }
    return {"bench": "optimizer_step", "machine": machine(), "networks": networks}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the JSON here")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    args = parser.parse_args()
    result = run(args.quick)
    print(table(result))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
