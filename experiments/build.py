"""Where the strings of a configuration become functions: the only registry."""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import flax.linen as nn

from experiments import rules
from experiments.config import Config, ConfigError, unknown
from experiments.data import augment, digits, graphs, images
from experiments.data.dataset import Dataset
from experiments.journal import Journal
from experiments.lab import Augment, Lab, Run, make_lab
from experiments.loop import Fit
from experiments.methods import (
    arena,
    arena_other,
    arena_prepared,
    compact_convnets,
    csgd,
    dense,
    dynamic_sparse,
    early_pruning,
    gap,
    gates,
    gsm,
    invariant,
    iterative,
    lasso,
    masksparsity,
    n_of_m,
    one_shot,
    powerprop,
    prune_at_init,
    reparameterized,
    scales,
    similarity,
    swd_channels,
    swept,
    tpp,
    trp,
)
from experiments.models import (
    deep_tanh,
    densenet,
    digits_resnet,
    fbnetv3,
    lenet,
    residual_mlp,
    resnet,
    vgg,
)
from experiments.results import Row
from experiments.schedules import Rate
from experiments.systems import contenders, mnist, super_resolution
from experiments.systems import graphs as graph_system
from experiments.systems.runner import Runner

DATA: dict[str, Callable[[str | None], Dataset]] = {
    "cifar10": images.load_cifar10,
    "cifar100": images.load_cifar100,
    "cifar10_part": images.load_cifar10_part,
    "cifar10_small": images.load_cifar10_small,
    "citeseer": lambda folder: graphs.load_graph("citeseer", folder),
    "cora": lambda folder: graphs.load_graph("cora", folder),
    "digits": lambda folder: digits.load_digits(),
    "fashion_mnist": images.load_fashion_mnist,
    "imagenet": images.load_imagenet,
    "imagenette": images.load_imagenette,
    "mnist": images.load_mnist,
}


def _gcn(classes: int) -> nn.Module:
    from experiments.models import gcn  # jraph comes with the extra `data`

    return gcn.GCN(classes)


def _cifar_resnet(depth: int, classes: int) -> nn.Module:
    stages = ((depth - 2) // 6,) * 3
    return resnet.ResNet(
        stages, 16, classes, bottleneck=False, shortcut="pad", stem="small"
    )


def _digits_resnet14(classes: int) -> nn.Module:
    return resnet.ResNet((3, 3), 16, classes, bottleneck=False, stem="small")


def _cifar_resnet14(classes: int) -> nn.Module:
    return resnet.ResNet(
        (2, 2, 2), 8, classes, bottleneck=False, shortcut="pad", stem="small"
    )


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "cifar_resnet14": _cifar_resnet14,
    "deep_tanh": deep_tanh.DeepTanh,
    "digits_resnet": digits_resnet.DigitsResNet,
    "digits_resnet14": _digits_resnet14,
    "gcn": _gcn,
    "lenet300": lenet.LeNet300,
    "lenet5": lenet.LeNet5,
    "residual_mlp": residual_mlp.ResidualMLP,
    "resnet50": lambda classes: resnet.ResNet((3, 4, 6, 3), 64, classes),
    **{f"resnet{n}": partial(_cifar_resnet, n) for n in (20, 32, 56, 110)},
    "densenet40": densenet.densenet40,
    "stable_mlp": partial(residual_mlp.ResidualMLP, branch_scale=10**-0.5),
    "vgg16": vgg.VGG16,
    **{n: partial(fbnetv3.FBNetV3, member) for n, member in fbnetv3.MEMBERS.items()},
}

AUGMENT: dict[str, Augment] = {
    "crop_flip": augment.crop_flip,
    "none": augment.keep,
    "small_crop_flip": partial(augment.crop_flip, pad=2),
}

METHODS: dict[str, Callable[..., Any]] = {
    "arena_at_once": arena.arena_at_once,
    "arena_csgd": arena_prepared.arena_csgd,
    "arena_gates": arena_other.arena_gates,
    "arena_scales": arena_other.arena_scales,
    "arena_slimming": arena_prepared.arena_slimming,
    "arena_swd": arena_prepared.arena_swd,
    "arena_tpp": arena_prepared.arena_tpp,
    "arena_trp": arena_other.arena_trp,
    "asl": reparameterized.asl,
    "aswl": reparameterized.aswl,
    "compact_convnets": compact_convnets.compact_convnets,
    "csgd": csgd.csgd,
    "dynamic_sparse": dynamic_sparse.dynamic_sparse,
    "gates": gates.gates,
    "early_pruning": early_pruning.early_pruning,
    "gap": gap.gap,
    "gradual": swept.gradual,
    "gsm": gsm.gsm,
    "gsm_tickets": gsm.gsm_tickets,
    "hard_n_of_m": n_of_m.hard_n_of_m,
    "issp": swept.issp,
    "iterative": iterative.iterative,
    "issr": swept.issr,
    "invariant": invariant.invariant,
    "lasso": lasso.lasso,
    "masksparsity": masksparsity.masksparsity,
    "one_shot": one_shot.one_shot,
    "powerprop": powerprop.powerprop,
    "prune_at_init": prune_at_init.prune_at_init,
    "scales": scales.scales,
    "similarity": similarity.similarity,
    "sls": reparameterized.sls,
    "sr_ste": reparameterized.sr_ste,
    "straight_through": reparameterized.straight_through,
    "swd": swept.swd,
    "swd_channels": swd_channels.swd_channels,
    "top_kast": reparameterized.top_kast,
    "tpp": tpp.tpp,
    "trp": trp.trp,
    "weightmom": swept.weightmom,
}

RUNNERS: dict[str, Runner] = {
    "arena": contenders.RUNNER,
    "graphs": graph_system.RUNNER,
    "mnist": mnist.RUNNER,
    "super_resolution": super_resolution.RUNNER,
}


def pick(kind: str, name: str, known: dict[str, Any]) -> Any:
    """`known[name]`, or an error with the nearest names."""
    if name not in known:
        raise unknown(kind, name, known)
    return known[name]


def check(config: Config) -> None:
    """Refuses a configuration that is unknown or out of range, before anything runs.

    Raises:
      ConfigError: naming the field or the run.
    """
    for part in config.beside:
        check(part)
    runner = pick("runner", config.runner, RUNNERS) if config.runner else None
    pick("data set", config.data, runner.data if runner else DATA)
    pick("model", config.model, runner.models if runner else MODELS)
    pick("augmentation", config.augment, AUGMENT)
    own = (config.batch, config.steps_per_dispatch, config.checkpoint_every)
    for name, value in zip(_COUNTS, own, strict=True):
        if not 0 <= value < 2**31:
            raise ConfigError(
                f"`{name}` must be at least 0 and below 2**31, got {value}."
            )
    rules.check("", {name: getattr(config, name) for name in _TRAINING})
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in _TRAINING:
        if runner and getattr(config, name) != defaults[name]:
            raise ConfigError(f"`{name}`: the runner `{config.runner}` does not do it.")
    rules.check_distinct(config.runs)
    if runner:
        _check_keywords("setup", runner.open, config.setup, beside=PASSED)
    none = runner and config.dense.get("epochs") == 0  # a runner may do without
    given = {k: v for k, v in config.dense.items() if not (none and k == "epochs")}
    train = runner.dense if runner else TRAIN
    _check_keywords("dense", train, config.dense, checked=given)
    known = runner.methods if runner else METHODS
    for label, run in config.runs.items():
        if "method" not in run:
            raise ConfigError(f"run `{label}` has no `method`: {', '.join(known)}.")
        method = pick("method", run["method"], known)
        _check_keywords(label, method, keywords(run))
        for key, names in _NAMES.get(method, {}).items():
            for name in [run[key]] if isinstance(run[key], str) else run[key]:
                if name not in names:
                    raise unknown(f"value of `{label}.{key}`", name, names)


_NAMES: dict[Callable[..., Any], dict[str, Collection[str]]] = {
    arena.arena_at_once: {"rules": arena.RULES},
    compact_convnets.compact_convnets: {
        "rules": compact_convnets.RULES,
        "smaller": fbnetv3.MEMBERS,
    },
    early_pruning.early_pruning: {"arms": early_pruning.ARMS},
    prune_at_init.prune_at_init: {
        "criteria": [
            name + change
            for name in prune_at_init.CRITERIA
            for change in ("", " shuffled", " rescaled")
        ]
    },
}
"""The words that a setting of a method may hold."""


_TRAINING = (
    *("validation", "smoothing", "ema", "compute", "accumulate"),
    *("distill", "distill_temperature", "train_examples", "test_examples"),
)
_COUNTS = ("batch", "steps_per_dispatch", "checkpoint_every")


def open_lab(
    config: Config,
    *,
    seed: int,
    data_dir: str | None,
    journal: Journal,
    checkpoints: Callable[[Run], Any],
    prefix: str = "",
    tune: bool = False,
) -> Lab:
    """Loads the data and builds the network that the configuration names.

    Raises:
      ConfigError: if the batch does not fit the training set or the devices.
      DataError: if the data is not there.
    """
    dataset = first_examples(
        DATA[config.data](data_dir), config.train_examples, config.test_examples
    )
    dataset = without_validation(dataset, config.validation, tune)
    model = MODELS[config.model](dataset.classes)
    lab = make_lab(
        config,
        dataset,
        model,
        AUGMENT[config.augment],
        seed=seed,
        journal=journal,
        checkpoints=checkpoints,
        prefix=prefix,
    )
    for label, run in config.runs.items():
        if "batch" in run:
            lab.rebatched(run["batch"], f"{label}.batch")  # refuses what does not fit
    return lab


def first_examples(dataset: Dataset, train: int, test: int) -> Dataset:
    """The data set with its first training and test examples alone.

    Args:
      dataset: all of it.
      train: how many of the training examples; 0 for all.
      test: how many of the test examples; 0 for all.

    Raises:
      ConfigError: if there are not so many.
    """
    asked = {"train_examples": train, "test_examples": test}
    for name, there in zip(asked, (dataset.train, dataset.test), strict=True):
        if asked[name] > len(there):
            raise ConfigError(
                f"`{name}` is {asked[name]}: {dataset.name} has {len(there)}; 0 takes "
                "all of them."
            )
    return dataset._replace(
        train=dataset.train[: train or None], test=dataset.test[: test or None]
    )


def without_validation(dataset: Dataset, count: int, tune: bool) -> Dataset:
    """The data set, the last `count` training examples kept out of training.

    Args:
      dataset: all of it.
      count: how many.
      tune: test on those, so that the test set is not looked at.

    Raises:
      ConfigError: if nothing is left to train on, or there is nothing to tune on.
    """
    if not count and not tune:
        return dataset
    if not 0 < count < len(dataset.train):
        raise ConfigError(
            f"`validation` is {count}: expected 1 to {len(dataset.train) - 1} of the "
            f"training examples of {dataset.name}. Give `--set validation=COUNT`."
        )
    train, held = dataset.train[:-count], dataset.train[-count:]
    return dataset._replace(train=train, test=held if tune else dataset.test)


PASSED = ("seed", "data_dir", "journal", "checkpoints", "prefix")
"""What a runner's `open` is given beside the configuration's `setup`."""

TRAIN = dense.train_dense


def open_runner(config: Config, **passed: Any) -> Any:
    """What the runs of a part with a `runner` share; has `config`, `journal`, `prefix`.

    Args:
      config: the part.
      **passed: the values named in `PASSED`.

    Raises:
      ConfigError: if a setting does not fit the data.
      DataError: if the data is not there.
    """
    return RUNNERS[config.runner].open(config, **passed, **config.setup)


def rows(lab: Lab, dense: Fit, settings: dict[str, Any]) -> Iterator[Row]:
    """The rows of one run of a configuration; who starts from it gets the dense run."""
    method = METHODS[settings["method"]]
    own = lab._replace(settings=settings)
    given = (own, dense) if "dense" in inspect.signature(method).parameters else (own,)
    yield from method(*given, **keywords(settings))


def keywords(run: dict[str, Any]) -> dict[str, Any]:
    """What a run passes to its method: all but the method's name."""
    return {key: value for key, value in run.items() if key != "method"}


def _check_keywords(
    label: str,
    method: Callable,
    given: dict[str, Any],
    beside: tuple[str, ...] = (),
    checked: dict[str, Any] | None = None,
) -> None:
    wanted = {
        parameter.name: parameter.annotation
        for parameter in inspect.signature(method).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in beside
    }
    for key, value in given.items():
        if key not in wanted:
            raise unknown(f"setting of run `{label}`", key, wanted)
        if isinstance(value, dict) and wanted[key] is not Rate:
            raise ConfigError(f"`{label}.{key}` must be a number here, got {value!r}.")
        rules.check_kind(f"{label}.{key}", value, wanted[key])
    missing = [key for key in wanted if key not in given]
    if missing:
        raise ConfigError(f"run `{label}` lacks {', '.join(missing)}.")
    rules.check(label, given if checked is None else checked)
