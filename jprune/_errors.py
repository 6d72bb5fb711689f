"""One form for every error: what was expected, what came, which leaf, what to do.

Errors are plain `ValueError` and `TypeError`, so nothing has to be imported to catch
them; the prefix says where they come from in a long trace.
"""

from collections.abc import Sequence

PREFIX = "[jprune] "


def value_error(message: str) -> ValueError:
    """A `ValueError` that says it is ours."""
    return ValueError(PREFIX + message)


def type_error(message: str) -> TypeError:
    """A `TypeError` that says it is ours."""
    return TypeError(PREFIX + message)


def no_params(name: str) -> ValueError:
    """The error of a transformation whose `update` was called without `params`."""
    return value_error(
        f"`{name}` needs the parameters: call `update(updates, state, params)` with "
        "`params`, got None."
    )


def listing(lines: Sequence[str], limit: int = 12) -> str:
    """Offending leaves, one a line, cut after `limit` with a count of the rest."""
    shown = [f"\n  {line}" for line in lines[:limit]]
    if len(lines) > limit:
        shown.append(f"\n  ... and {len(lines) - limit} more")
    return "".join(shown)
