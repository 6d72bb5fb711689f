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
# # Selective weight decay from scratch to 98 %
#
# Selective weight decay (SWD) trains and prunes at once. At every step the smallest weights of
# the network, as many as should go in the end, feel an extra decay. Its strength grows during
# training, from hardly any to so much that nothing is left to remove at the end.
#
# We train a small convolutional network on the 8x8 digits that ship with scikit-learn, to 98 % of zeros.

# %%
# %matplotlib inline
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from tqdm.auto import tqdm

from jprune import analysis, masks, transforms

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
x = jnp.asarray(digits.images[order][..., None] / 16.0, jnp.float32)
y = jnp.asarray(digits.target[order])
train_x, train_y, test_x, test_y = x[:1437], y[:1437], x[1437:], y[1437:]

# %% [markdown]
# ## The network: plain Flax NNX


# %%
class Net(nnx.Module):
    """Two convolutions and two dense layers; 39,000 weights."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(4 * 4 * 32, 64, rngs=rngs)
        self.out = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv1(x))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        return self.out(nnx.relu(self.dense(x.reshape(len(x), -1))))


graphdef, params = nnx.split(Net(nnx.Rngs(0)))


def loss(params, x, y):
    logits = nnx.merge(graphdef, params)(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def accuracy(params):
    return (nnx.merge(graphdef, params)(test_x).argmax(-1) == test_y).mean()


# %% [markdown]
# ## One line is the method
#
# `transforms.swd` is a chain: the selective decay, momentum, the learning rate, and a projection that
# removes what is left of the targeted weights at the last step.

# %%
STEPS = 1500
SPARSITY = 0.98
schedule = optax.linear_schedule(0.05, 0.01, STEPS)
tx = transforms.swd(
    schedule, mu=1e-3, total_steps=STEPS, sparsity=SPARSITY, a_min=1.0, a_max=1e5
)
dense_tx = optax.sgd(schedule, momentum=0.9)


# %%
def train(tx, params):
    """Trains, and logs accuracy and how many weights are (nearly) zero."""

    @jax.jit
    def step(params, state, key):
        rows = jax.random.choice(key, len(train_x), (128,))
        grads = jax.grad(loss)(params, train_x[rows], train_y[rows])
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def small(params):
        kernels = [p for p in jax.tree.leaves(params) if p.ndim > 1]
        return sum((jnp.abs(p) < 1e-3).sum() for p in kernels) / sum(
            p.size for p in kernels
        )

    state, log = tx.init(params), []
    keys = jax.random.split(jax.random.key(1), STEPS)
    for i, key in enumerate(tqdm(keys, mininterval=2)):
        params, state = step(params, state, key)
        if (i + 1) % 50 == 0:
            log.append(
                {
                    "step": i + 1,
                    "test accuracy": float(accuracy(params)),
                    "below 0.001": float(small(params)),
                }
            )
    return params, log


dense, dense_log = train(dense_tx, params)
sparse, sparse_log = train(tx, params)

# %%
figure = analysis.plot_history({"dense": dense_log, "SWD": sparse_log})
figure

# %% [markdown]
# ## What is left
#
# The count is exact. The targeted weights had gone before they were removed, so the removal
# itself changed (almost) nothing.

# %%
print(analysis.report(sparse))
print(f"dense {float(accuracy(dense)):.2%}, SWD at 98 % {float(accuracy(sparse)):.2%}")

# %%
analysis.plot_sparsity(analysis.report(sparse))

# %% [markdown]
# ## Against removing at once
#
# The same number of the smallest weights of the dense network, gone in one step:

# %%
once = masks.apply(masks.unstructured(dense, SPARSITY), dense)
print(f"one shot at 98 %: {float(accuracy(once)):.2%}")
assert float(accuracy(sparse)) > float(accuracy(once)) + 0.05
plt.close("all")
