# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A convolutional network at half its latency
#
# We train a small VGG on the 8x8 digits that ship with scikit-learn, enlarged to 16x16. Then we ask for
# half the *time* of one call, measured on this machine, and get a Flax module of the same class family that
# is smaller in every sense. A short fine-tuning ends it.

# %%
# %matplotlib inline
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from tqdm.auto import tqdm

from jprune import analysis, surgery
from jprune.frameworks import nnx as jnnx

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = jnp.asarray(digits.images[order][..., None] / 16.0, jnp.float32)
x = jax.image.resize(images, (len(images), 16, 16, 1), "bilinear")
y = jnp.asarray(digits.target[order])
train_x, train_y, test_x, test_y = x[:1437], y[:1437], x[1437:], y[1437:]


# %%
class VGG(nnx.Module):
    """Four convolutions with batch norm, a dense layer, a classifier."""

    def __init__(self, rngs: nnx.Rngs):
        widths = [1, 32, 32, 64, 64]
        self.convs = nnx.List(
            [
                nnx.Conv(a, b, (3, 3), use_bias=False, rngs=rngs)
                for a, b in zip(widths, widths[1:])
            ]
        )
        self.norms = nnx.List(
            [nnx.BatchNorm(b, momentum=0.9, rngs=rngs) for b in widths[1:]]
        )
        self.dense = nnx.Linear(4 * 4 * 64, 128, rngs=rngs)
        self.out = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            x = nnx.relu(norm(conv(x)))
            if i % 2:
                x = nnx.max_pool(x, (2, 2), (2, 2))
        return self.out(nnx.relu(self.dense(x.reshape(len(x), -1))))


def train(model, steps, rate):
    """Adam with a cosine schedule; returns the losses."""
    model.train()
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss(m):
            return optax.softmax_cross_entropy_with_integer_labels(m(x), y).mean()

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    rng, losses = np.random.default_rng(1), []
    for _ in tqdm(range(steps), mininterval=2):
        rows = rng.integers(0, len(train_x), 64)
        losses.append(step(model, optimizer, train_x[rows], train_y[rows]))
    model.eval()
    return [float(loss) for loss in losses]


@nnx.jit
def accuracy(model):
    return (model(test_x).argmax(-1) == test_y).mean()


# %%
model = VGG(nnx.Rngs(0))
losses = train(model, 250, 2e-3)
dense = float(accuracy(model))
print(f"dense: {dense:.2%}")
analysis.plot_history([{"step": i, "loss": v} for i, v in enumerate(losses)])

# %% [markdown]
# ## What can be cut
#
# Each row is a parameter, each box one of its axes. Boxes with the same letter shrink together.

# %%
deps = jnnx.groups(model, test_x[:1])
analysis.plot_groups(deps)

# %% [markdown]
# ## Ask for half the time
#
# `relative_cost` measures a plan's compact network and the dense one in turns. `select` tries few
# plans along its order of removal until the measured time is at most half. It measures the plan that it accepts once more, and warns when the
# figure is over the budget or lost in noise.

# %%
graphdef, state = nnx.split(model)


def apply(state, x):
    return nnx.merge(graphdef, state)(x)


started = time.time()
cost = analysis.relative_cost("latency", apply, state, test_x[:32], rounds=15)
plan = surgery.select(deps, deps.scores(state), cost=cost, at_most=0.5, round_to=4)
print(
    f"measured again: {plan.measured} of the dense, found in {time.time() - started:.0f} s"
)
print(plan.table())

# %%
analysis.plot_widths(deps, plan)

# %% [markdown]
# ## A module to keep
#
# `small` is an NNX module: it trains, saves and reloads as any other.

# %%
small = jnnx.shrink(model, plan)
cut = float(accuracy(small))
train(small, 80, 5e-4)
tuned = float(accuracy(small))
print(f"dense {dense:.2%}, cut {cut:.2%}, fine-tuned {tuned:.2%}")
assert tuned > dense - 0.03

# %%
analysis.plot_front(
    {"cut": [(50, 100 * cut)], "fine-tuned": [(50, 100 * tuned)]},
    x="latency left (%)",
    dense=100 * dense,
)
