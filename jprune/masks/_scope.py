"""Scopes: which leaves of a parameter tree take part in pruning.

A scope is a tree of Python bools, the form `optax.masked` takes. It is static: it
decides the program, never a value.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from jprune._errors import (
    listing,
    nearest,
    noting,
    require_regex,
    type_error,
    value_error,
)
from jprune._tree import (
    KeyTuple,
    keyed_leaves,
    keys_text,
    leaf_name,
    like_variables,
    matches,
    named_leaves,
    require_same_structure,
    require_tree,
)
from jprune._typing import Mask, Params, PyTree, Scope
from jprune.masks._fit import require_fit

NOT_WEIGHTS = "bias scale gamma beta mean var offset embedding embeddings".split()
"""Names of leaves that are not ranked by default."""

Pattern = str | Callable[[str, Any], bool]


def prunable(
    params: Params,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    verbose: bool = False,
    *,
    names: Sequence[str] | None = None,
) -> Scope:
    r"""The leaves that pruning should rank, as a tree of Python bools.

    By default every floating leaf with at least two axes whose name is not bias, scale,
    gamma, beta, mean, var, offset, embedding or embeddings (attention biases and
    stacked norm scales have two axes, so the number of axes alone does not tell). The
    name is the last entry of the path.

    Args:
      params: the parameters, or their shapes and dtypes (`jax.ShapeDtypeStruct`).
      include: which leaves instead. A regular expression searched in the leaf path
        `a/b/kernel`: one for modules ("decoder", "layer_1/") takes of them what the
        default rule takes; one that names leaves ("bias", "norm/scale$") takes those;
        and one for any path (".*") every floating leaf. Or a predicate
        `(path, leaf) -> bool`, which replaces the rule. Leaves that are not floating
        are passed over unless their name is asked for, and then refused.
      exclude: likewise; leaves it matches are left out.
      verbose: print each leaf with what was decided.
      names: a path for each leaf, in flattening order, where the tree has none: Keras
        hands lists, `names=[v.path for v in model.trainable_variables]`. Give the scope
        made so to whatever takes a `scope`.

    Returns:
      A tree of bools with the structure of `params`; the tree itself if it has no
      leaves (as `optax.masked` and `optax.tree.map_params` hand over).

    Raises:
      TypeError: `include` names a leaf that is not floating.
      ValueError: `params` has leaves and none of them is in scope, or `include` or
        `exclude` matches no leaf or is no regular expression; a list of arrays with two
        axes or more and no names, of which any could be an embedding.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import masks
      >>> masks.prunable({"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})
      {'a': {'bias': False, 'kernel': True}}
    """
    leaves = named_leaves(params)
    if not leaves:
        return params
    if names is not None:
        leaves = _renamed(leaves, names)
    elif include is None:
        _require_names(params)
    for name, pattern in (("include", include), ("exclude", exclude)):
        _require_match(name, pattern, leaves)
    if include is not None:
        _require_floating(include, leaves)

    def takes_part(path: str, leaf: Any) -> bool:
        if not _is_floating(leaf):
            return False
        if exclude is not None and _matches(exclude, path, leaf):
            return False
        if include is not None and not _matches(include, path, leaf):
            return False
        return _is_weight(path, leaf) or _asks_for(include, path, leaf)

    decided = [takes_part(path, leaf) for path, leaf in leaves]
    if verbose:
        for (path, _), taken in zip(leaves, decided, strict=True):
            print(f"{'prune' if taken else 'leave'}  {path}")
    if not any(decided):
        require_tree("params", params)
        _require_no_step(params)
        rule = "the default rule" if include is None else f"`include`={include!r}"
        raise value_error(
            f"No leaf is prunable by {rule}: leaves must be floating, and by default "
            f"have two axes or more and another name than {', '.join(NOT_WEIGHTS)}. "
            "Pass another `include` or `scope`; an expression takes others if it ends "
            "in their names (`norm/scale`). The leaves are:"
            + listing([f"{path} {_kind(leaf)}" for path, leaf in leaves])
        )
    return jax.tree.unflatten(jax.tree.structure(params), decided)


def _require_match(
    name: str, pattern: Pattern | None, leaves: list[tuple[str, Any]]
) -> None:
    """Raises for a pattern that is no regular expression or matches no leaf."""
    if isinstance(pattern, str):
        require_regex(name, pattern)
    if pattern is not None and not any(_matches(pattern, *leaf) for leaf in leaves):
        raise value_error(
            f"`{name}`={pattern!r} matches no leaf. {_leaves_near(pattern, leaves)}"
        )


def _is_weight(path: str, leaf: Any) -> bool:
    """The default rule, for a floating leaf."""
    return np.ndim(leaf) >= 2 and leaf_name(path) not in NOT_WEIGHTS


def _asks_for(include: Pattern | None, path: str, leaf: Any) -> bool:
    """Whether a pattern that matches a leaf means it, and not all that lies with it."""
    if not isinstance(include, str):
        return include is not None
    any_path = all(re.search(include, name) for name in _OTHER_NAMES)
    return any_path or _names(include, path, leaf)


def _names(include: Pattern, path: str, leaf: Any) -> bool:
    """Whether a pattern that matches a leaf would not, under another name of it.

    Then it asks for this very name.
    """
    before, name, after = path.rpartition(leaf_name(path))
    others = [f"{before}{x}{after}" for x in _OTHER_NAMES if x != name]
    return not any(_matches(include, other, leaf) for other in others)


def _require_floating(include: Pattern, leaves: list[tuple[str, Any]]) -> None:
    """Raises for a pattern that asks for a leaf by its name which cannot be pruned."""
    for path, leaf in leaves:
        if _is_floating(leaf) or not _matches(include, path, leaf):
            continue
        if _names(include, path, leaf):
            raise type_error(
                f"Only floating leaves can be pruned, got {_kind(leaf)} at {path}, "
                f"which {include!r} names. Leave it out of `scope` or `include`; a "
                "pattern for any name, such as '.*', passes it over."
            )


_OTHER_NAMES = ("q", "other_name", "Other", "73")
"""Names that stand for any other, of a leaf."""


def _require_no_step(params: Params) -> None:
    """Raises for one 0-d integer: no parameters, but the step that a schedule gets."""
    dtype = getattr(params, "dtype", None)
    if dtype is not None and not params.ndim and jnp.issubdtype(dtype, jnp.integer):
        raise value_error(
            f"Expected parameters, got one number, {_kind(params)}. "
            "`optax.inject_hyperparams` takes every function for a schedule and calls "
            "it with the step: name the functions that are none (`select`, `scope`, "
            "`mask`, ...) in its `static_args`."
        )


def _leaves_near(pattern: Pattern, leaves: list[tuple[str, Any]]) -> str:
    """The leaves that a pattern may have meant, or all."""
    paths = [path for path, _ in leaves]
    near = nearest(pattern, paths) if isinstance(pattern, str) else []
    if near and len(near) < len(paths) and len(paths) > 12:
        return f"Near it are:{listing(near)}"
    return f"The leaves are:{listing(near + [p for p in paths if p not in near])}"


def _renamed(
    leaves: list[tuple[str, Any]], names: Sequence[str]
) -> list[tuple[str, Any]]:
    """The leaves with the names given beside them."""
    if isinstance(names, str) or len(names) != len(leaves):
        raise value_error(
            f"`names` must hold one path for each of the {len(leaves)} leaves, got "
            f"{names!r}."
        )
    return [(str(name), x) for name, (_, x) in zip(names, leaves, strict=True)]


def _require_names(params: Params) -> None:
    """Raises for arrays in a bare list: nothing tells a kernel from an embedding."""
    bare = [
        f"{keys_text(path)} {_kind(x)}"
        for path, x in keyed_leaves(params)
        if _is_floating(x) and np.ndim(x) >= 2 and _is_listed(params, path)
    ]
    if bare:
        raise value_error(
            "These arrays lie in a list and have no names, so that embeddings and "
            "biases cannot be told from kernels. Name them, `scope=masks.prunable("
            "params, names=[...])` (Keras: `[v.path for v in "
            "model.trainable_variables]`), or say which take part by `scope`, a tree "
            f"of bools or an expression such as '.*'.{listing(bare)}"
        )


def _is_listed(params: Params, path: KeyTuple) -> bool:
    """Whether a leaf lies in a list, and nothing on the way to it has a name.

    In a tuple it has a place of its own: `[(kernel, bias), ...]`.
    """
    if not path or not all(isinstance(key, int) for key in path):
        return False
    node: Any = params
    for key in path[:-1]:
        node = node[key]
    return isinstance(node, list)


_SCOPE_CALL = (
    "`scope` was called with the parameters, to give a tree of bools. For a function "
    "of a path and a leaf: `scope=lambda params: masks.prunable(params, "
    "include=function)`."
)


def resolve_scope(scope: Any, params: Params) -> Scope:
    """The scope a `scope` argument means for these parameters.

    Args:
      scope: None for `prunable(params)`; a regular expression for
        `prunable(params, include=scope)`; a function of the parameters; or a tree of
        bools with exactly their structure.
      params: the parameters.

    Returns:
      A tree of Python bools; `params` itself if it has no leaves.

    Raises:
      ValueError: another structure than `params`, no leaf in scope, or a text that is
        no regular expression.
      TypeError: a leaf that is not a Python bool, or an integer or complex leaf in
        scope: True in a tree, or named by an expression (one for any name, as ".*",
        passes it over).
    """
    if not jax.tree.leaves(params):
        return params
    if scope is None:
        return prunable(params)
    if isinstance(scope, str):
        _require_match("scope", scope, named_leaves(params))
        return prunable(params, include=scope)
    if isinstance(scope, list | tuple | set) and any(isinstance(x, str) for x in scope):
        raise type_error(
            "`scope` must be one regular expression where names are meant, "
            f"{'|'.join(map(str, scope))!r}, got {type(scope).__name__} of texts."
        )
    # A module of Equinox is both a tree and callable.
    is_tree = not jtu.treedef_is_leaf(jax.tree.structure(scope))
    if callable(scope) and not is_tree:
        with noting(lambda: _SCOPE_CALL):
            tree = scope(params)
    else:
        tree = like_variables(scope, params)
    require_same_structure("scope", tree, params)
    pairs = zip(named_leaves(tree), jax.tree.leaves(params), strict=True)
    for (path, taken), leaf in pairs:
        if not isinstance(taken, bool):
            raise type_error(
                f"`scope` must hold Python bools, got {type(taken).__name__} at {path}."
            )
        if taken and not _is_floating(leaf):
            raise type_error(
                f"Only floating leaves can be pruned, got {_kind(leaf)} at {path}. "
                "Leave it out of `scope`."
            )
    if not any(jax.tree.leaves(tree)):
        raise value_error("`scope` takes no leaf at all; nothing would be pruned.")
    return tree


def _is_floating(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _kind(leaf: Any) -> str:
    """Dtype and shape of a leaf, or its type if it is no array."""
    if not hasattr(leaf, "dtype"):
        return type(leaf).__name__
    return f"{leaf.dtype}{list(np.shape(leaf))}"


def _matches(pattern: Pattern, path: str, leaf: Any) -> bool:
    if isinstance(pattern, str):
        return matches(pattern, path)
    return bool(pattern(path, leaf))


def in_scope(tree: PyTree, scope: Scope) -> list[Any]:
    """The leaves of `tree` that take part.

    Args:
      tree: a tree with the structure of the scope.
      scope: a tree of bools, from `resolve_scope`.

    Returns:
      A list, in flattening order.
    """
    return in_scope_list(jax.tree.leaves(tree), scope)


def in_scope_list(values: list[Any], scope: Scope) -> list[Any]:
    """Of one value for each leaf, those of the leaves that take part."""
    return [x for x, t in zip(values, jax.tree.leaves(scope), strict=True) if t]


def scoped_names(tree: PyTree, scope: Scope) -> list[str]:
    """The path texts of the leaves that take part, in flattening order."""
    return in_scope_list([name for name, _ in named_leaves(tree)], scope)


def from_scope(scope: Scope, keeps: list[Any]) -> PyTree:
    """A mask: `keeps` in order at the leaves in scope, a 0-d True at the others."""
    rest = iter(keeps)
    return jax.tree.map(lambda t: next(rest) if t else jnp.array(True), scope)


def inside(within: Mask | None, like: PyTree, scope: Scope) -> list[jax.Array] | None:
    """The leaves of a `within` mask that take part, or None."""
    if within is None:
        return None
    require_same_structure("within", within, like)
    # Out of scope nothing is read, and scores may have no place for it.
    taken = jax.tree.map(lambda t, m: m if t else True, scope, within)
    require_fit(taken, like, "within")
    return [jnp.asarray(m, bool) for m in in_scope(within, scope)]
