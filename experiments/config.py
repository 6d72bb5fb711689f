"""Configurations: found by name, changed by `--set`, refused when anything is unknown.

A configuration is `experiments/configs/<name>.py`. Its docstring is the document
(paper, what is expected, what we got, cost, command) and `get_config()` returns a
`Config` of literals, with every setting of every run written out: there are no hidden
defaults. For the page of results a module may have `PAPER`, the paper's figure for rows
that are in its setting, by the row's name, and `AGAIN`, the configurations (or their
result files) that ask the same of more data.
"""

import ast
import copy
import dataclasses
import difflib
import importlib
import inspect
import json
import math
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import experiments.configs


class ConfigError(ValueError):
    """An unknown configuration, key or name, or a value of the wrong kind."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence that the rows must bear out.

    Attributes:
      text: the sentence.
      runs: labels of the rows it speaks of; without one of them it is left out. Claims
        of the first part may speak of rows of those `beside` it, whose labels begin
        with the name of their model ("fbnetv3_a dense").
      holds: from those rows to whether it is true.
      small: whether it must hold in a small form too, which trains too briefly to say
        anything about accuracy.
    """

    text: str
    runs: tuple[str, ...]
    holds: Callable[..., bool]
    small: bool = False


def loses(run: str, points: float, extra: str = "") -> Claim:
    """The claim that a run loses no more accuracy than the paper says.

    Args:
      run: label of its row.
      points: of a hundred, between the dense network and the row; negative for a gain.
      extra: the accuracy that is meant, where it is one of the row's further numbers.
    """
    told = f"loses no more than the paper's {points:g}"
    if points < 0:
        told = f"gains no less than the paper's {-points:g}"

    def holds(dense: Any, row: Any) -> bool:
        found = row.extra[extra] if extra else row.after
        return 100 * found >= 100 * dense.after - points - 1e-6

    return Claim(f"{run}{extra and ', ' + extra}, {told} points", ("dense", run), holds)


def exact(*runs: str) -> Claim:
    """The claim that as many weights are left as were asked for."""
    return Claim(
        f"every count is exactly the one asked for ({runs[0]} and its like)",
        runs,
        lambda *rows: all(row.nonzero == row.kept for row in rows),
        small=True,
    )


def cheaper(run: str, times: float) -> Claim:
    """The claim that a network has so many times fewer multiply-adds."""
    return Claim(
        f"{run} has no more than 1 / {times:g} of the dense network's FLOPs",
        (run,),
        lambda row: row.extra["flops"] <= 1 / times,
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment.

    Attributes:
      data: data set, a key of `experiments.build.DATA`.
      model: network, a key of `experiments.build.MODELS`.
      batch: examples in a step, over all devices; 0 for the whole training set.
      dense: keywords of `experiments.methods.dense.train_dense`.
      runs: for each row or rows of the table, the "method" (a key of
        `experiments.build.METHODS`) and the keywords of that function.
      augment: a key of `experiments.build.AUGMENT`.
      steps_per_dispatch: training steps in one compiled call; 0 chooses: an epoch, but
        1 for a network with convolutions on CPU, where XLA runs a convolution
        inside a loop many times slower.
      checkpoint_every: epochs between checkpoints; 0 for none but the last.
      train_examples: the first so many training examples are used; 0 for all.
      test_examples: likewise of the test set.
      validation: the last so many training examples are kept out of training; with
        `--tune` every accuracy is on them, and the test set is not looked at.
      smoothing: of the labels; the share that is spread over all classes.
      ema: decay of a running average of the parameters, which a run then returns, its
        zeros those of the last step; 0 for none.
      compute: "float32", or "bfloat16" for the network (parameters and their updates
        stay float32).
      accumulate: parts that a batch is cut into, their gradients averaged.
      distill: share of the loss, in fine-tuning, that is the distance to the dense
        network's outputs; 0 for none.
      distill_temperature: of both outputs in that distance.
      claims: what the rows should show; checked and printed at the end.
      beside: further experiments, each with a dense run of its own, in the same table.
      runner: a key of `experiments.build.RUNNERS` for what is not one classifier of
        one seed; it has its own dense run, methods, data and models.
      setup: keywords of that runner's `open`.
    """

    data: str
    model: str
    batch: int
    dense: dict[str, Any]
    runs: dict[str, dict[str, Any]]
    augment: str = "none"
    steps_per_dispatch: int = 0
    checkpoint_every: int = 10
    train_examples: int = 0
    test_examples: int = 0
    validation: int = 0
    smoothing: float = 0.0
    ema: float = 0.0
    compute: str = "float32"
    accumulate: int = 1
    distill: float = 0.0
    distill_temperature: float = 4.0
    claims: tuple[Claim, ...] = ()
    beside: tuple["Config", ...] = ()
    runner: str = ""
    setup: dict[str, Any] = dataclasses.field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Everything but the claims, as a fresh tree of dicts and literals."""
        tree = _own(self)
        if self.beside:
            tree["beside"] = [part.settings() for part in self.beside]
        return tree

    def parts(self) -> tuple["Config", ...]:
        """This experiment alone, then those beside it."""
        return dataclasses.replace(self, beside=()), *self.beside


_NO_SETTINGS = ("claims", "beside")
"""Fields of a configuration that are not settings of their own."""


def complete(old: dict[str, Any]) -> dict[str, Any]:
    """The settings of an older job, with the defaults of fields that came since."""
    fields = [f for f in dataclasses.fields(Config) if f.name not in _NO_SETTINGS]
    plain = {
        field.name: field.default_factory()
        if field.default_factory is not dataclasses.MISSING
        else field.default
        for field in fields
        if (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
    }
    found = {**json.loads(json.dumps(plain)), **old}
    if "beside" in old:
        found["beside"] = [complete(part) for part in old["beside"]]
    return found


def names() -> list[str]:
    """Every configuration there is."""
    found = pkgutil.iter_modules(experiments.configs.__path__)
    return sorted(module.name for module in found)


def load(name: str, *, small: bool = False) -> Config:
    """The configuration called `name`.

    Args:
      name: a module of `experiments.configs`.
      small: its small form, which ends in minutes on two cores and shows that the whole
        can run, not what it is worth.

    Raises:
      ConfigError: if there is none, or it has no small form; lists the nearest names.
    """
    if name not in names():
        raise unknown("configuration", name, names())
    found = importlib.import_module(f"experiments.configs.{name}").get_config
    if not small:
        return found()
    if "small" not in inspect.signature(found).parameters:
        raise ConfigError(f"`{name}` has no small form: leave `--small` out.")
    return found(small=True)


def shortened(
    config: Config, epochs: int, *, examples: int, of: int, batch: int, **fields: Any
) -> Config:
    """The same experiment on few examples and for few epochs: a small form.

    In each part the longest run takes `epochs` epochs and the others in proportion, at
    least one. Rates fall at the same shares of a run, and shrink in proportion to the
    batch: a step of few images at the old rate may diverge. `interval` shrinks in
    proportion to the steps of its run, `every` to a tenth of them if it is more. Of a
    sweep of numbers the first stays, and of the claims those that need no training.

    Args:
      config: the whole.
      epochs: of the longest run.
      examples: training examples that are used.
      of: how many the whole has.
      batch: examples in a step.
      **fields: of every part, in place of its own.
    """
    parts = []
    for part in config.parts():
        runs = [part.dense, *part.runs.values()]
        longest = max(run.get(name, 0) for run in runs for name in _LENGTHS)
        held = round(part.validation * examples / of)
        cut = _Cut(
            epochs / longest,
            before=lambda size, part=part: (of - part.validation) // size,
            after=(examples - held) // batch,
            batch=batch,
        )
        short = dataclasses.replace(
            part,
            train_examples=examples,
            validation=held,
            batch=batch,
            dense=cut(part.dense, part.batch),
            runs={name: cut(run, part.batch) for name, run in part.runs.items()},
            claims=tuple(claim for claim in part.claims if claim.small),
        )
        parts.append(dataclasses.replace(short, **fields))
    return dataclasses.replace(parts[0], beside=tuple(parts[1:]))


_LENGTHS = ("epochs", "tune_epochs")
_RATES = ("lr", "tune_lr")
_SWEPT = ("sparsity", "density", "strength")


def _times(rate: Any, factor: float) -> Any:
    """A learning rate, or one that falls in steps, times a factor."""
    if isinstance(rate, dict):
        return {**rate, "peak": factor * rate["peak"]}
    return factor * rate


class _Cut(NamedTuple):
    """How the runs of one part become shorter.

    Attributes:
      share: of the epochs.
      before: steps in an epoch of the whole, from the batch.
      after: steps in an epoch.
      batch: examples in a step.
    """

    share: float
    before: Callable[[int], int]
    after: int
    batch: int

    def __call__(self, run: dict[str, Any], batch: int) -> dict[str, Any]:
        """The settings of one run, whose batch was `batch` if it does not say."""
        made = dict(run)
        for name in (*_LENGTHS, "window"):
            if name in run:
                made[name] = max(1, round(self.share * run[name]))
        for name in _SWEPT:
            if isinstance(run.get(name), tuple):
                made[name] = run[name][:1]
        size = run.get("batch", batch)
        for name in _RATES:
            if name in run:
                made[name] = _times(run[name], min(1.0, self.batch / size))
        if "batch" in run:
            made["batch"] = self.batch
        if "every" in run:
            steps = made["epochs"] * self.after
            made["every"] = min(run["every"], max(1, steps // 10))
        if "interval" in run:
            steps = made["epochs"] * self.after
            whole = run["epochs"] * self.before(size)
            made["interval"] = max(1, round(run["interval"] * steps / whole))
        return made


def override(config: Config, settings: Iterable[str]) -> Config:
    """The configuration with each `key=value` put in.

    A key is a field (`batch`), a setting of the dense run (`dense.epochs`) or of a run
    (`runs.swd.mu`, or shorter `swd.mu`). A value is a Python literal of the kind that
    stands there; text needs no quotes. It reaches every part that has the key.

    Raises:
      ConfigError: for a key that is not there, with the nearest ones, or a value of
        another kind.
    """
    trees = [_own(part) for part in config.parts()]
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"`--set {setting}`: expected key=value.")
        places = [place for tree in trees if (place := _find(tree, key))]
        if not places:
            raise unknown("key", key, [name for tree in trees for name in _keys(tree)])
        for node, last in places:
            node[last] = _parse(key, text, node[last])
    first, *beside = (
        Config(**tree, claims=part.claims)
        for tree, part in zip(trees, config.parts(), strict=True)
    )
    return dataclasses.replace(first, beside=tuple(beside))


def only(config: Config, labels: Iterable[str]) -> Config:
    """The configuration with these runs alone (the dense one always stays)."""
    wanted = set(labels)
    known = {label for part in config.parts() for label in part.runs}
    for label in wanted - known:
        raise unknown("run", label, known)
    parts = [
        dataclasses.replace(
            part,
            runs={label: part.runs[label] for label in part.runs if label in wanted},
        )
        for part in config.parts()
    ]
    first, *beside = [part for part in parts if part.runs] or parts[:1]
    return dataclasses.replace(first, beside=tuple(beside))


def combine(configs: Sequence[Config]) -> Config:
    """One configuration of all their parts; those that share a dense run train it once.

    Raises:
      ConfigError: if two runs of one dense network have one label and other settings.
    """
    groups: list[Config] = []
    for part in (part for config in configs for part in config.parts()):
        alike = [i for i, group in enumerate(groups) if _shared(group) == _shared(part)]
        if alike:
            groups[alike[0]] = _merged(groups[alike[0]], part)
        else:
            groups.append(part)
    return dataclasses.replace(groups[0], beside=tuple(groups[1:]))


def _shared(config: Config) -> Config:
    return dataclasses.replace(config, runs={}, claims=())


def _merged(one: Config, other: Config) -> Config:
    for label in one.runs.keys() & other.runs.keys():
        if one.runs[label] != other.runs[label]:
            raise ConfigError(f"two configurations have a run `{label}`, not alike.")
    return dataclasses.replace(
        one, runs=one.runs | other.runs, claims=one.claims + other.claims
    )


def unknown(kind: str, got: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not among the known ones: says which are near."""
    known = sorted(known)
    near = difflib.get_close_matches(got, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return ConfigError(f"unknown {kind} `{got}`: {hint}known: {', '.join(known)}.")


def _own(config: Config) -> dict[str, Any]:
    """The literals of one part, copied."""
    fields = {field.name for field in dataclasses.fields(config)}
    names = sorted(fields - {"claims", "beside"})
    return {name: copy.deepcopy(getattr(config, name)) for name in names}


def _find(tree: dict[str, Any], key: str) -> tuple[dict[str, Any], str] | None:
    """The dict that holds a key and its last part; None if there is no such key."""
    parts = key.split(".")
    if parts[0] in tree["runs"]:
        parts = ["runs", *parts]
    node: Any = tree
    for part in parts[:-1]:
        node = node.get(part)
        if not isinstance(node, dict):
            return None
    if parts[-1] not in node or isinstance(node[parts[-1]], dict):
        return None
    return node, parts[-1]


def _keys(tree: dict[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            keys += _keys(value, "" if name == "runs" else f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _like(value: Any, old: Any) -> Any:
    """An integer as a float where a float stands; infinity for one too large."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    try:
        return float(value) if isinstance(old, float) and whole else value
    except OverflowError:
        return math.inf


def _parse(key: str, text: str, old: Any) -> Any:
    if isinstance(old, str):
        return text
    try:
        new = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        new = text
    new = _like(new, old)
    if isinstance(old, tuple) and isinstance(new, int | float):
        new = (new,)
    if isinstance(old, tuple) and isinstance(new, list):
        new = tuple(new)
    if isinstance(old, tuple) and isinstance(new, tuple) and old:
        new = tuple(_like(item, old[0]) for item in new)
        if any(type(item) is not type(old[0]) for item in new):
            raise ConfigError(
                f"`{key}` is {old!r}: expected values of type {type(old[0]).__name__}, "
                f"got {text!r}."
            )
    if old is not None and type(new) is not type(old):
        raise ConfigError(
            f"`{key}` is {old!r}: expected a value of type {type(old).__name__}, "
            f"got {text!r}."
        )
    return new
