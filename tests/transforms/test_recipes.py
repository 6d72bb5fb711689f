"""What every recipe refuses: another optimizer in the place of its learning rate."""

import optax
import pytest

from jprune import transforms
from jprune.surgery import AxisRef, Group

GROUP = Group("a:1", 4, (AxisRef(("a",), 1, "out"),))
RECIPES = {
    "csgd": lambda tx: transforms.csgd(
        tx, [GROUP], {"a:1": [0, 0, 1, 1]}, strength=0.1, weight_decay=0.0
    ),
    "gap": lambda tx: transforms.gap(tx, 0.5, partitions=2, period=2, steps=1),
    "gsm": lambda tx: transforms.gsm(tx, sparsity=0.5, weight_decay=0.0),
    "issp": lambda tx: transforms.issp(tx, sparsity=0.5, total_steps=9),
    "rigl": lambda tx: transforms.rigl(tx, sparsity=0.5, total_steps=9),
    "sparse_evolutionary": lambda tx: transforms.sparse_evolutionary(
        tx, sparsity=0.5, every=1
    ),
    "sr_ste": lambda tx: transforms.sr_ste(tx, 2, 4),
    "static_sparse": lambda tx: transforms.static_sparse(tx, sparsity=0.5),
    "swd": lambda tx: transforms.swd(tx, mu=1e-4, total_steps=9, sparsity=0.5),
    "trp": lambda tx: transforms.trp(tx, every=2),
}


@pytest.mark.parametrize("name", RECIPES)
def test_an_optimizer_is_no_learning_rate(name):
    says = f"`learning_rate` must be a number.*`{name}` is a whole optimizer"
    with pytest.raises(TypeError, match=says):
        RECIPES[name](optax.adam(1e-3))
