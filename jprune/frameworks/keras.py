"""Keras 3 on the JAX backend: compact models, and pruning within `fit`.

Set `KERAS_BACKEND=jax` before Keras is imported. Any chain of Optax and jprune prunes
while `fit` trains, and five lines make the smaller model that trains on:

>>> import os; os.environ["KERAS_BACKEND"] = "jax"
>>> import keras, jax.numpy as jnp
>>> from jprune import surgery, transforms
>>> from jprune.frameworks import keras as jkeras
>>> layers = [keras.layers.Dense(32, "relu"), keras.layers.Dense(4)]
>>> model = keras.Sequential([keras.Input((8,)), *layers])
>>> x, y = jnp.ones((16, 8)), jnp.zeros((16, 4))
>>> tx = transforms.swd(0.01, mu=5e-4, total_steps=2, sparsity=0.5)
>>> model.compile(optimizer=jkeras.Optimizer(tx), loss="mse")
>>> _ = model.fit(x, y, batch_size=8, verbose=0)
>>> deps = jkeras.groups(model, x)
>>> plan = surgery.select(deps, deps.scores(jkeras.named(model)), sparsity=0.5)
>>> small = jkeras.shrink(model, plan)
>>> small.count_params(), model.count_params()
(212, 420)
>>> small.compile(optimizer="adam", loss="mse")
>>> _ = small.fit(x, y, verbose=0)

Lists of arrays, which Keras' stateless functions take, have lost their names; `named`
gives a dict from the variables' paths, for `masks.prunable` and the like.

Save and reload in another process: `small.save("small.keras")` keeps all in one file,
and `keras.saving.load_model` finds the class once this module is imported. Or with
weights and plan apart::

    plan.save("plan.json")
    small.save_weights("small.weights.h5")
    ...
    small = jkeras.load(build(), "plan.json")
    small.load_weights("small.weights.h5")
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import optax

from jprune._errors import listing, type_error, value_error
from jprune._public import settled
from jprune._tree import KeyTuple
from jprune.frameworks._numbered import renumbered
from jprune.frameworks._state import (
    Mean,
    Recalibration,
    Setting,
    copied,
    found,
    joined,
    of_batch,
    plan_at,
    require_statistics,
    shrunk,
    told,
)
from jprune.surgery import Groups, Plan
from jprune.transforms._build import around

__all__ = ("Optimizer", "groups", "load", "named", "shrink")

if keras.backend.backend() != "jax":
    raise ImportError(
        "[jprune] Keras must run on JAX: set the environment variable "
        f"KERAS_BACKEND=jax before Keras is imported, got {keras.backend.backend()!r}."
    )


def named(variables: Any) -> dict[str, Any]:
    """The arrays of variables by their paths, as `dense/kernel`.

    Args:
      variables: a list of Keras variables, or a model or layer, for all of its own.

    Returns:
      Path to array, in the order of the variables; a tree like any other.

    Raises:
      ValueError: if two variables have one path.

    Examples:
      ::

        scope = masks.prunable(jkeras.named(model.trainable_variables))
    """
    return {path: v.value for path, v in _by_path(variables).items()}


def _by_path(variables: Any) -> dict[str, Any]:
    if isinstance(variables, keras.layers.Layer):
        variables = variables.variables
    out: dict[str, Any] = {}
    for v in variables:
        if v.path in out:
            raise value_error(
                f"two variables have the path {v.path}: give their layers `name=`."
            )
        out[v.path] = v
    return out


def groups(
    model: keras.Model,
    *args: Any,
    free_outputs: Callable[[KeyTuple], bool] | Sequence[KeyTuple] = (),
    lookups: Sequence[str | Sequence[str]] = (),
    **kwargs: Any,
) -> Groups:
    """What may be removed from a model, found on one call of it.

    Args:
      model: the model, built.
      *args: example arguments of the call; shapes are enough.
      free_outputs: as in `surgery.groups`.
      lookups: as in `surgery.groups`.
      **kwargs: its keyword arguments (`training=True`).

    Returns:
      The groups, over `named(model)`.
    """
    fn, *given = as_function(model, args, kwargs)
    return found(fn, free_outputs, (0,), lookups)(*given)


def shrink(
    model: keras.Model, plan: Plan, *, mean: Mean = "dense", rng: Mean = "dense"
) -> "CompactModel":
    """The compact model of a model and a plan.

    Args:
      model: the model, with the weights to keep. The compact model holds on to the
        dense one: its layers are the program. A compact one is cut once more, with the
        weights that it has (`first_plan.then(plan)` is the plan from the dense model).
      plan: a plan over `named(model)`. Numbers that Keras appends to the names of
        layers (`dense_3`) may differ.
      mean: as in `surgery.shrink`.
      rng: as in `surgery.shrink`.

    Returns:
      A `keras.Model` for `fit`, `evaluate`, `predict` and `save`.

    Raises:
      TypeError: if `model` is no Keras model, or `plan` is no plan.
      ValueError: if the plan is for other variables than the model's.

    Examples:
      ::

        small = jkeras.shrink(model, plan)
        small.compile(optimizer="adam", loss="mse")
        small.fit(x, y)
    """
    if not isinstance(model, keras.Model):
        raise type_error(f"`model` must be a keras.Model, got {type(model).__name__}.")
    plan = renumbered(plan, named(model))
    setting = Setting(plan, mean, rng, model)
    if isinstance(model, CompactModel):
        first = model._setting
        setting = Setting(joined(first, plan, mean, rng), mean, rng, first.model)
    small = CompactModel(setting)
    packed = copied(plan.pack(named(model)))  # `fit` donates its arrays
    for path, variable in _by_path(small.variables).items():
        variable.assign(packed[path])
    return small


def load(
    model: keras.Model, plan: Any, *, mean: Mean = "dense", rng: Mean = "dense"
) -> "CompactModel":
    """The compact model in a fresh process: the model is built, the plan is read.

    Args:
      model: the dense model, built as it was; its weights do not matter.
      plan: the file that `Plan.save` wrote.
      mean: as it was given to `shrink`.
      rng: as it was given to `shrink`.

    Returns:
      The compact model, ready for `load_weights`.
    """
    return shrink(model, plan_at(plan), mean=mean, rng=rng)


def as_function(model: keras.Model, args: Any, kwargs: dict[str, Any]) -> Any:
    """One call of a model as a function of its variables, and the arguments of it."""
    fn = told(_Call(model), _dense(model).call, args, kwargs)
    return fn, named(model), args, kwargs


def _dense(model: Any) -> Any:
    return model._setting.model if isinstance(model, CompactModel) else model


def recalibration(model: keras.Model, **kwargs: Any) -> Recalibration:
    """How the statistics of a model are measured; it is changed in place."""
    moving = [v.value for v in model.trainable_variables]
    other = _by_path(model.non_trainable_variables)
    dense = _dense(model)
    norms = [x for x in dense._flatten_layers() if hasattr(x, "moving_mean")]
    require_statistics([x.moving_mean.value for x in norms], "`BatchNormalization`")

    def update(stats: Any, batch: Any) -> Any:
        values = [stats[path] for path in other]
        how = {"training": True, **kwargs}
        with of_batch(dense.call, batch, how) as args:
            result: Any = model.stateless_call(moving, values, *args, **how)
        return dict(zip(other, result[1], strict=True))

    def put(new: Any) -> Any:
        for path, v in other.items():
            v.assign(new[path])
        return model

    momenta = frozenset(float(getattr(x, "momentum", float("nan"))) for x in norms)
    stats = {path: v.value for path, v in other.items()}
    return Recalibration(update, stats, put, momenta)


class _Call:
    """One call as a function: ((result, losses), changed variables)."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, params: Mapping[str, Any], args: Any, kwargs: Any) -> Any:
        model = self.model
        moving, other = model.trainable_variables, model.non_trainable_variables
        out, after, losses = model.stateless_call(
            [params[v.path] for v in moving],
            [params[v.path] for v in other],
            *args,
            return_losses=True,
            **kwargs,
        )
        pairs = {v.path: x for v, x in zip(other, after, strict=True)}
        new = {(p,): x for p, x in pairs.items() if x is not params[p]}
        return (out, list(losses)), new


_ENDS = ("inputs", "outputs", "input_shape", "output_shape")
"""What removal does not change."""


@keras.saving.register_keras_serializable("jprune")
class CompactModel(keras.Model):
    """A dense model and a plan, as a model of the packed variables.

    Made by `shrink` and `load`. Its variables have the paths of the dense ones.
    """

    def __init__(self, setting: Setting, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._setting = setting
        shapes = setting.plan.compact_shapes
        for path, v in _by_path(setting.model).items():
            own = self.add_weight(
                shape=shapes[path,],
                dtype=v.dtype,
                trainable=v.trainable,
                autocast=False,
                constraint=v.constraint,
                initializer="zeros",
                name=v.name,
            )
            own._path = path  # what scopes and reports go by
        self.built = True
        shapes = getattr(setting.model, "_build_shapes_dict", None)
        if shapes:  # what `export` asks of a model that is no graph of layers
            self._build_shapes_dict = dict(shapes)

    def __getattr__(self, name: str) -> Any:
        """Inputs and outputs of a dense model that knows them."""
        if name in _ENDS and "_setting" in vars(self):
            return getattr(self._setting.model, name)
        raise AttributeError(
            f"{type(self).__name__!r} object has no attribute {name!r}"
        )

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """As the dense model's call."""
        setting, variables = self._setting, _by_path(self.variables)
        if setting.model._call_has_training_arg:
            kwargs["training"] = bool(training)
        small = shrunk(_Call(setting.model), setting.plan, setting.mean, setting.rng)
        values = {path: v.value for path, v in variables.items()}
        (out, losses), new = small(values, (inputs,), kwargs)
        for path, value in new.items():
            variables[str(path[0])].assign(value)
        for loss in losses:
            self.add_loss(loss)
        return out

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """As the dense model's: removal changes no output."""
        if not self._setting.model._call_has_training_arg:
            kwargs.pop("training", None)
        return self._setting.model.compute_output_spec(*args, **kwargs)

    def build(self, *shapes: Any) -> None:
        """Nothing is left to build."""

    def save(self, filepath: Any, *args: Any, **how: Any) -> None:
        """As any model's: `small.save("small.keras")`.

        Raises:
          ValueError: for HDF5 or a path of another ending, with what to do instead.
        """
        path, zipped = str(filepath), how.get("zipped") is not False
        if zipped and not path.endswith(".keras") and not path.startswith("hf://"):
            raise value_error(
                "a compact model is saved as `.keras`, which holds its plan and its "
                f"arrays; HDF5 (`.h5`) holds the arrays of layers, got {path!r}. Write "
                '`small.save("small.keras")`, or `plan.save("plan.json")` with '
                '`small.save_weights("small.weights.h5")`, for `jkeras.load`.'
            )
        super().save(filepath, *args, **how)

    def export(self, filepath: Any, format: str = "tf_saved_model", **how: Any) -> None:
        """As the dense model's, but for ONNX.

        Raises:
          ValueError: for ONNX, with what to do instead.
        """
        if format == "onnx":
            raise value_error(
                "a compact model is no model for Keras' ONNX converter, which replaces "
                "functions of JAX while it traces. Hand jax2onnx the closed jaxpr of "
                "`lambda x: small(x, training=False)`, as docs/export.md shows."
            )
        dense = self._setting.model
        if how.get("input_signature") is None and hasattr(dense, "inputs"):
            struct = (
                dense.inputs if isinstance(dense, keras.Sequential) else dense.input
            )
            how["input_signature"] = [keras.tree.map_structure(_spec, struct)]
        super().export(filepath, format=format, **how)

    def get_config(self) -> dict[str, Any]:
        """The dense model's configuration and the plan."""
        setting = self._setting
        return {
            "name": self.name,
            "model": keras.saving.serialize_keras_object(setting.model),
            "plan": setting.plan.to_json(),
            "mean": setting.mean,
            "rng": setting.rng,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """The compact model without its weights, which `load_model` then restores."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        plan = renumbered(Plan.from_json(config["plan"]), named(model))
        setting = Setting(plan, config["mean"], config["rng"], model)
        return cls(setting, name=config["name"])


def _spec(x: Any) -> Any:
    """An input of any batch size."""
    return keras.InputSpec(shape=(None, *x.shape[1:]), dtype=x.dtype, name=x.name)


class Optimizer(keras.optimizers.Optimizer):
    """An Optax chain, of jprune's transformations or any others, as Keras' optimizer.

    `fit` then prunes while it trains, without a callback. The transformation sees a
    dict from the variables' paths to arrays, so that scopes go by name: the default
    scope leaves out biases, norms and embeddings. Learning rate, decay and clipping
    belong into the chain. `total_steps` of a recipe is epochs times batches.

    Args:
      tx: the transformation.
      name: of the optimizer.

    Raises:
      TypeError: if `tx` is no Optax transformation.

    Examples:
      ::

        steps = epochs * -(-len(x) // batch_size)
        tx = transforms.swd(0.1, mu=5e-4, total_steps=steps, sparsity=0.9)
        model.compile(optimizer=jkeras.Optimizer(tx), loss="mse")
        model.fit(x, y, batch_size, epochs)
    """

    def __init__(self, tx: optax.GradientTransformation, name: str = "optax") -> None:
        super().__init__(learning_rate=1.0, name=name)
        self._tx = around(tx, "tx")

    def build(self, variables: Iterable[Any]) -> None:
        """Makes the state of the chain, one Keras variable for each of its arrays."""
        if self.built:
            return
        variables = list(variables)
        super().build(variables)
        state = copied(self._tx.init(named(variables)))  # `fit` donates them
        leaves, self._state_tree = jax.tree.flatten(state)
        self._keys = [_impl(x) for x in leaves]
        start = len(self.variables)
        for i, (leaf, impl) in enumerate(zip(leaves, self._keys, strict=True)):
            value = jax.random.key_data(leaf) if impl else jnp.asarray(leaf)
            dtype = str(value.dtype)
            variable = self.add_variable(value.shape, dtype=dtype, name=f"state_{i}")
            variable.assign(value)
        self._state_at = slice(start, len(self.variables))

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """One step of the chain on Keras' variables."""
        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        self.build(trainable_variables)
        grads = list(grads)
        missing = [
            v.path for v, g in zip(trainable_variables, grads, strict=True) if g is None
        ]
        if missing:
            raise value_error(
                "variables without a gradient: make their layers not trainable."
                f"{listing(missing)}"
            )
        own = _by_path(trainable_variables)
        params = {path: v.value for path, v in own.items()}
        updates, state = self._tx.update(
            dict(zip(own, grads, strict=True)), self.state, params
        )
        new: Any = optax.apply_updates(params, updates)
        for path, v in own.items():
            v.assign(new[path])
            if v.constraint is not None:
                v.assign(v.constraint(v))
        held = self.variables[self._state_at]
        for v, x in zip(held, jax.tree.leaves(state), strict=True):
            v.assign(jax.random.key_data(x) if _impl(x) else x)
        self._iterations.assign_add(1)

    @property
    def state(self) -> Any:
        """The state of the chain, as `tx.init` shaped it."""
        values = [v.value for v in self.variables[self._state_at]]
        leaves = [
            jax.random.wrap_key_data(x, impl=impl) if impl else x
            for x, impl in zip(values, self._keys, strict=True)
        ]
        return jax.tree.unflatten(self._state_tree, leaves)

    def get_config(self) -> dict[str, Any]:
        """The name; a chain is code, which no file holds."""
        return {"name": self.name}

    @classmethod
    def from_config(cls, config: Any, custom_objects: Any = None) -> Any:
        """Refuses: a chain is code.

        Raises:
          ValueError: always.
        """
        raise value_error(
            "an Optax chain is not kept in a file: use `load_model(path, "
            "compile=False)` and compile with `jkeras.Optimizer(tx)`."
        )


def _impl(x: Any) -> Any:
    """The kind of a random key, or None for a plain array."""
    if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key_impl(x)
    return None


__dir__ = settled(globals())
