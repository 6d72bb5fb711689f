"""Every unstructured method on MNIST: one budget, three tuning tries each, three seeds.

The question is a user's, not a paper's: with as many training examples seen and as
many settings tried, which method leaves the best sparse LeNet-300-100?

Everyone has 4 epochs of 55,000 images in batches of 256: those that train from the
initialization all of them; those that start from a dense network (one-shot, iterative,
GSM, powerpropagation) 2 for that network and 2 after it. SGD with momentum 0.9, a
warm-up and a cosine. Each method has one knob with three values, tried at 98 % with a
seed of its own on the last 5,000 training images; the best of them serves all
sparsities and seeds, the test set is looked at once. Pixels / 255, He's initialization.

One ranking over the whole network decides where a method allows it; who must know its
layers beforehand (RigL, SET, static masks, C-GaP, K-starts, dissipating gradients) has
the Erdos-Renyi-Kernel allocation. What a method leaves is cut to the exact count by
magnitude; ASWL and ASL learn their counts, and are cut where they keep more, and left
where they keep less.

Those whose knob is the learning rate try 0.1, 0.3, 1. The others train at 0.3, the best
of the dense network, but two: powerpropagation at 0.2 (at 0.3 some seeds diverge) and
GSM at 0.03 with its momentum of 0.98.

Where this is not the authors' setting, for all of them: the budget, a tenth and less of
what the papers train. ISS-P and ISS-R run on SGD (Adam), rank globally (each layer) and
remove at 60 % of the run (a third). Powerpropagation may recover after its cut (in the
paper's figure it may not). GSM decays harder than the paper's 5e-4, or 2 epochs would
not shrink the passive weights. C-GaP has 2 rounds of 3 layers. ASWL's attentions have a
hundredth of the weights' rate: with a tenth they fall before the weights have learned
anything, and the network stays at chance (seen here and on digits). SR-STE, SLS and
other N:M methods are not in it: no M of theirs divides this network's axes at 90 % and
more.

Found: gradual pruning and weight history lead at every sparsity (97.1 both at 98 %,
94.5 and 94.4 at 99.5 %); straight-through masks are with them to 95 %. Iterative
cutting of a dense network and C-GaP come next at the end (93.7 and 93.3 at 99.5 %). GSM
begins 3 points lower and has 89.2 there. SWD has 95.6 at 98 %, above all that prune at
initialization and below those named before it but GSM and C-GaP; cutting it to the
count costs it nothing at 98 %. With a rate of 0.1, as this table was first made, it had
88.7: in so few steps the rate decides more than the method does.

**What this table does not say.** The knob is tuned at 98 %, with one seed, where the
spread between seeds is up to 2 points: it can miss. Top-KAST and SNIP took the rate 1
by it and have 78.9 and 90.2 at 99 %, where 0.3 had given 93.3 and 92.0. The edge of the
knob was taken by eight: five the rate 1, ISS-R, K-starts and ASWL their own. ASL and
ASWL keep more than asked and pay when they are cut: at 99.5 % both are lost. RigL
against a static mask at 98 %: 93.8 at its fixed rate of 0.3, the mask 94.1 at the rate
1 that it tuned.

Cost: about 40 minutes of one core; seconds of a row are of all its seeds, compilation
included.

Command: `python -m experiments.train mnist_arena --data-dir FOLDER`.
"""

from typing import Any

from experiments.config import Claim, Config

SPARSITY = (0.9, 0.95, 0.98, 0.99, 0.995)
RATES = (0.1, 0.3, 1.0)


def _entry(method: str, tries: tuple[float, ...], **own: Any) -> dict[str, Any]:
    return {
        "method": method,
        "tries": tries,
        "tune_at": 0.98,
        "sparsity": SPARSITY,
        "epochs": 4,
        "momentum": 0.9,
        **own,
    }


DECAY = {"weight_decay": 1e-4}
USUAL = {"lr": 0.3, **DECAY}
MOVES = {**USUAL, "every": 25, "end": 0.75}


RUNS = {
    "one_shot": _entry("one_shot", RATES, **DECAY),
    "gsm": _entry("gsm", (5e-3, 1e-2, 2e-2), lr=0.03) | {"momentum": 0.98},
    "iterative": _entry("iterative", RATES, **DECAY, rounds=2),
    "gradual": _entry("gradual", RATES, **DECAY, end=0.7, every=10),
    "swd": _entry("swd", (1e4, 1e5, 1e6), lr=0.3, mu=5e-4, a_min=0.1),
    "rigl": _entry("rigl", (0.3, 0.5, 0.7), **MOVES),
    "static": _entry("static", RATES, **DECAY),
    "set": _entry("set", (0.1, 0.3, 0.5), **MOVES),
    "straight_through": _entry("straight_through", RATES, **DECAY),
    "top_kast": _entry("top_kast", RATES, **DECAY, backward=3.0),
    "powerprop": _entry("powerprop", (3.0, 4.0, 5.0), lr=0.2),
    "weightmom": _entry(
        "weightmom",
        (0.5, 0.9, 0.99),
        **USUAL,
        end=0.7,
        every=10,
        gamma=0.0,
    ),
    "issp": _entry("issp", (0.2, 0.5, 0.8), **USUAL, end=0.6),
    "issr": _entry("issr", (1e-3, 3e-3, 1e-2), **USUAL, end=0.6, every=10, limit=0.5),
    "snip": _entry("snip", RATES, **DECAY, per_class=10),
    "grasp": _entry("grasp", RATES, **DECAY, per_class=10, temperature=200.0),
    "synflow": _entry("synflow", RATES, **DECAY, rounds=100),
    "sbp": _entry("sbp", RATES, **DECAY, per_class=10),
    "k_starts": _entry("k_starts", (0.0, 0.5, 1.0), **USUAL, k=16),
    "dissipating": _entry("dissipating", RATES, **DECAY, window=2),
    "gap": _entry(
        "gap",
        RATES,
        **DECAY,
        partitions=("Dense_0", "Dense_1", "Dense_2"),
        rounds=2,
    ),
    "asl": _entry(
        "asl", (30.0, 100.0, 300.0), **USUAL, threshold_rate=0.1, min_size=1000
    ),
    "aswl": _entry(
        "aswl",
        (0.03, 0.0625, 0.125),
        lr=0.3,
        decay=1e-4,
        gamma=100.0,
        attention_rate=0.01,
    ),
}


def get_config() -> Config:
    """The settings."""
    return Config(
        runner="arena",
        data="mnist",
        model="lenet300",
        batch=256,
        setup={"seeds": 3, "inputs": "pixels", "init": "he", "validation": 5000},
        dense={
            "tries": RATES,
            "epochs": 4,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "sparsity": SPARSITY,
        },
        runs=RUNS,
        claims=CLAIMS,
    )


CLAIMS = (
    Claim(
        "at 98 % gradual pruning is above the dense network cut and trained on",
        ("gradual 98%", "one-shot, trained on 98%"),
        lambda gradual, one_shot: gradual.after > one_shot.after,
    ),
    Claim(
        "at 98 % RigL is above a static random mask",
        ("RigL 98%", "static random 98%"),
        lambda rigl, static: rigl.after > static.after,
    ),
    Claim(
        "at 98 % what prunes while training (gradual, SWD, ISS-P) is above what prunes "
        "at initialization (SNIP, GraSP, SynFlow)",
        tuple(
            f"{name} 98%"
            for name in ("gradual", "SWD", "ISS-P", "SNIP", "GraSP", "SynFlow")
        ),
        lambda *rows: min(r.after for r in rows[:3]) > max(r.after for r in rows[3:]),
    ),
    Claim(
        "some method loses less than half a point at 95 % against the dense network",
        ("dense", "gradual 95%", "SWD 95%", "one-shot, trained on 95%"),
        lambda dense, *rows: max(r.after for r in rows) > dense.after - 0.005,
    ),
)
