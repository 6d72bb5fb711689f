"""Parts that several configurations in their authors' settings share.

`experiments.configs.authors_*` say where each setting comes from, and what is not the
authors'. A part has a dense run of its own, trained as that paper trains.
"""

from typing import Any

from experiments.config import Claim, Config, shortened
from experiments.schedules import in_steps


def aswl(data: str, model: str, held: int, epochs: int) -> Config:
    """He, Shi and Dong's: 64,000 steps of 32, a tenth of the training set held back.

    Args:
      data: the data set.
      model: the network.
      held: training examples that are held back.
      epochs: as many as 64,000 steps are.
    """
    lr = in_steps(1e-3, 64, (32, 48))  # thousands of steps
    shared = {"epochs": epochs, "lr": lr, "momentum": 0.9}
    return Config(
        data=data,
        model=model,
        batch=32,
        augment="none" if data == "mnist" else "crop_flip",
        validation=held,
        dense={**shared, "weight_decay": 1e-4},
        runs={
            "aswl": {
                **shared,
                "method": "aswl",
                "density": (0.0,),
                "gamma": 5.0,
                "alpha": 1.0,
                "decay": 1e-4,
                "attention_rate": 1.0,
            },
        },
        claims=(
            Claim(
                "ASWL learns a sparsity of more than a half, and loses at most a point",
                ("dense", "aswl r=0"),
                lambda dense, row: row.got > 0.5 and row.after >= dense.after - 0.01,
            ),
        ),
    )


def trp(model: str) -> Config:
    """Xu et al.'s on CIFAR-10: 164 epochs of 128, a truncation every 5 steps.

    Args:
      model: the network.
    """
    shared: dict[str, Any] = {
        "epochs": 164,
        "lr": in_steps(0.1, 164, (81, 122)),
        "momentum": 0.9,
        "weight_decay": 1e-4,
    }
    return Config(
        data="cifar10",
        model=model,
        batch=128,
        augment="crop_flip",
        dense=shared,
        runs={
            "trp": {
                **shared,
                "method": "trp",
                "kinds": ("channel", "spatial", "decoupled"),
                "energy": 0.9,
                "every": 5,
                "nuclear": 3e-4,
                "stats_momentum": 0.9,
                "rounds": 20,
            },
        },
    )


def gsm_base(batch: int = 64) -> dict[str, Any]:
    """The dense part of Ding et al.'s CIFAR-10 experiments: 500 epochs."""
    return {
        "data": "cifar10",
        "batch": batch,
        "augment": "crop_flip",
        "dense": {
            "epochs": 500,
            "lr": in_steps(0.1, 500, (100, 200, 300, 400), warmup=5),
            "momentum": 0.9,
            "weight_decay": 1e-4,
        },
    }


def gsm(compression: int) -> dict[str, Any]:
    """Their GSM run on CIFAR-10: 600 epochs of 64."""
    return {
        "method": "gsm",
        "compression": compression,
        "epochs": 600,
        "lr": in_steps(5e-3, 600, (400, 500), warmup=5),
        "momentum": 0.98,
        "nesterov": False,
        "weight_decay": 1e-4,
    }


def csgd(
    model: str, sparsity: float, lr: dict[str, Any], vector_multiplier: float = 0.1
) -> Config:
    """Ding et al.'s C-SGD on CIFAR-10: 600 epochs of 64 after a base of 600.

    Args:
      model: the network.
      sparsity: fraction of the filters to remove from every group.
      lr: of the C-SGD run.
      vector_multiplier: of the strength, on norms and biases.
    """
    shared = {"epochs": 600, "momentum": 0.9, "weight_decay": 1e-4}
    return Config(
        data="cifar10",
        model=model,
        batch=64,
        augment="crop_flip",
        dense={**shared, "lr": in_steps(5e-2, 600, (200, 400), warmup=5)},
        runs={
            "csgd": {
                **shared,
                "method": "csgd",
                "sparsity": sparsity,
                "clusters": ("kmeans",),
                "strength": 3e-3,
                "vector_multiplier": vector_multiplier,
                "bias_rate": 2.0,
                "lr": lr,
            },
        },
    )


def small(
    config: Config, epochs: int, *, examples: int, tests: int, batch: int = 32
) -> Config:
    """A small form, minutes of one core: every method with all its phases, briefly.

    Images of CIFAR-10 and ImageNet are those of CIFAR-10 at 16 x 16. It shows that
    everything runs and that counts are exact, and judges no accuracy.

    Args:
      config: the whole.
      epochs: of the longest run of each part.
      examples: training examples.
      tests: test examples.
      batch: examples in a step.
    """
    data, of = _IMAGES[config.data]
    fields = {"data": data, "compute": "float32", "accumulate": 1}
    short = shortened(
        config,
        epochs,
        examples=examples,
        of=of,
        batch=batch,
        test_examples=tests,
        **fields,
    )
    for part in short.parts():
        for run in part.runs.values():
            run.update(_briefly(run))
    return short


_IMAGES = {
    "cifar10": ("cifar10_small", 50_000),
    "imagenet": ("cifar10_small", 1_281_167),
    "mnist": ("mnist", 60_000),
}
"""The data of a small form, and how many training examples the whole has."""


def _briefly(run: dict[str, Any]) -> dict[str, Any]:
    """What a run of some hundred steps cannot have as it is, by its method."""
    match run["method"]:
        case "csgd":  # one step takes the filters of a cluster to their mean; a
            # hundred steps, and their running statistics are equal too
            pull = 1 / run["lr"]["peak"]
            return {"strength": pull, "vector_multiplier": 1.0, "bias_rate": 1.0}
        case "early_pruning":
            # weights move little in so short a run: a tenth takes more than asked for
            return {"seeds": 2, "fraction": (0.01,)}
        case "gap":
            return {"cyclic_rounds": (1,), "parallel_rounds": (1,)}
        case (
            "masksparsity"
        ):  # of scales that begin at 1 some come below it, none near 0
            return {"threshold": 1.0}
        case "tpp":  # every group needs a step of its own at the end
            return {"grow": 0.5, "samples": 10}
        case "trp":
            return {"rounds": 3}
    return {}


def at_init(sparsity: tuple[float, ...], **part: Any) -> Config:
    """SNIP, GraSP and SynFlow, each also shuffled, and random and magnitude masks.

    Args:
      sparsity: fractions to remove.
      **part: fields of the part; its `dense` is how the masked networks are trained.
    """
    names = ("snip", "grasp", "synflow")
    run = {
        **part["dense"],
        "method": "prune_at_init",
        "criteria": (
            "random",
            "magnitude",
            *(form for n in names for form in (n, f"{n} shuffled")),
        ),
        "sparsity": sparsity,
        "prefix": "",
        "draw": (2.0, 0.0),
        "sigma_w2": 2.0,
        "per_class": 10,
        "chunks": 2,
        "temperature": 200.0,
        "rounds": 100,
    }
    claims = tuple(
        Claim(
            f"at 90 % a mask of {name} shuffled within each layer is no worse, within "
            "half a point",
            (f"{name} 90%", f"{name} shuffled 90%"),
            lambda own, other: other.after >= own.after - 0.005,
        )
        for name in names
    )
    return Config(**part, runs={"at_init": run}, claims=claims)
