"""Leaf paths: how jprune names a leaf in reports and errors, and finds it again.

A path has two forms. The *text* `params/Conv_0/kernel` is for people and for regular
expressions. The *key tuple* `("params", "Conv_0", "kernel")` is for programs: it is
never split out of the text, since a key may itself contain "/" (Haiku's do).
"""

import re
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.tree_util as jtu

from jprune._errors import listing, type_error, value_error
from jprune._typing import PyTree

KeyTuple = tuple[Hashable, ...]


def path_text(path: Any) -> str:
    """`a/b/0` for a JAX key path, as `jax.tree_util.keystr(simple=True)` writes it."""
    return jtu.keystr(path, simple=True, separator="/")


def path_keys(path: Any) -> KeyTuple:
    """One plain key (a str or an int) for each level of a JAX key path."""
    return tuple(_plain_key(entry) for entry in path)


def keys_text(keys: KeyTuple) -> str:
    """`a/b/0` for a key tuple."""
    return "/".join(map(str, keys))


def prefix_of(at: Any) -> KeyTuple:
    """The key tuple of an argument `at`: a key, a tuple of keys, or None.

    Raises:
      TypeError: a key that is none, such as a second tree.
    """
    if at is None:
        return ()
    keys = tuple(at) if isinstance(at, tuple | list) else (at,)
    for key in keys:
        if not isinstance(key, Hashable):
            raise type_error(
                f"`at` must be a key or a tuple of keys, got {type(key).__name__}. Two "
                "trees are given as one, a pair as `(params, state)`."
            )
    return keys


def _plain_key(entry: Any) -> Hashable:
    for name in ("key", "idx", "name"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return str(entry)


def leaf_name(path: str) -> str:
    """The last entry of a path text that is a name: `kernel` of `a/b/kernel`.

    Flax NNX keeps each array as the attribute `value` of a variable, which is passed
    over: `layers/0/kernel/value` is named `kernel`.
    """
    entries = path.split("/")
    return entries[-2] if len(entries) > 1 and entries[-1] == "value" else entries[-1]


def named_leaves(
    tree: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> list[tuple[str, Any]]:
    """The leaves in flattening order, each with its path text."""
    pairs = jtu.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return [(path_text(path), leaf) for path, leaf in pairs]


def keyed_leaves(tree: PyTree) -> list[tuple[KeyTuple, Any]]:
    """The leaves in flattening order, each with its key tuple."""
    return [(path_keys(path), leaf) for path, leaf in jtu.tree_leaves_with_path(tree)]


def variable_path(path: KeyTuple) -> KeyTuple:
    """A path up to the variable of Flax NNX, which keeps its array as `value`.

    `nnx.pure`, and with it the update of `nnx.Optimizer`, hands over bare arrays, whose
    paths end where their variables are.
    """
    return path[:-1] if len(path) > 1 and path[-1] == "value" else path


def matches(pattern: str, path: str) -> bool:
    """Whether an expression is found in a path text, or in that of its variable.

    So that `kernel$` means the same leaves to `nnx.Optimizer` at its first step as when
    its state was made.
    """
    variable = path.removesuffix("/value")
    return any(re.search(pattern, text) for text in (path, variable))


def like_variables(
    tree: PyTree, like: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> PyTree:
    """`tree` in the structure of `like`, where variables of NNX are all that differs.

    A tree made of a state (scopes, axes, shares) is asked for again by the update of
    `nnx.Optimizer`, which sees no variables.
    """
    pairs = jtu.tree_leaves_with_path(tree, is_leaf=is_leaf)
    structure = jax.tree.structure(like)
    if structure == jax.tree.structure(tree, is_leaf=is_leaf):
        return tree
    paths = [variable_path(path_keys(path)) for path, _ in pairs]
    if paths != [variable_path(path) for path, _ in keyed_leaves(like)]:
        return tree
    return jax.tree.unflatten(structure, [x for _, x in pairs])


def leaf_numbers(tree: PyTree) -> dict[KeyTuple, int]:
    """The place of each leaf in flattening order, by its path or its variable's."""
    exact = {path: i for i, (path, _) in enumerate(keyed_leaves(tree))}
    return {variable_path(path): i for path, i in exact.items()} | exact


def map_named(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """`jax.tree.map` whose function also receives the path text, first."""
    return jtu.tree_map_with_path(
        lambda path, *leaves: fn(path_text(path), *leaves), tree, *rest
    )


def require_tree(what: str, tree: PyTree) -> None:
    """Raises for a single object that is no array, such as a model of Keras.

    Raises:
      TypeError: naming `what`, the class, and what to do.
    """
    if jtu.all_leaves([tree]) and not hasattr(tree, "shape"):
        raise type_error(
            f"`{what}` must be a tree of arrays, got {type(tree).__name__}: give its "
            "variables, under Keras `jprune.frameworks.keras.named(model)`."
        )


def require_same_structure(
    what: str, tree: PyTree, like: PyTree, of: str = "the parameters"
) -> None:
    """Raises unless `tree` has the tree structure of `like`, which `of` names.

    Raises:
      ValueError: naming `what` and the leaf paths only one of the two has, or what came
        in place of a tree.
    """
    if jax.tree.structure(tree) == jax.tree.structure(like):
        return
    expected = f"`{what}` must have exactly the structure of {of}"
    if jtu.treedef_is_leaf(jax.tree.structure(tree)):
        raise value_error(f"{expected}, got a single {type(tree).__name__}.")
    have = {name for name, _ in named_leaves(tree)}
    want = {name for name, _ in named_leaves(like)}
    lines = [f"missing: {name}" for name in sorted(want - have)]
    lines += [f"unexpected: {name}" for name in sorted(have - want)]
    if not lines:
        lines = [f"{jax.tree.structure(tree)} against {jax.tree.structure(like)}"]
    if what in ("mask", "within"):
        expected += " (a leaf out of scope is a 0-d True, not None)"
    raise value_error(f"{expected}.{listing(lines)}")
