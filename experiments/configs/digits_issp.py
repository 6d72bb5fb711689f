"""ISS-P and ISS-R on digits: from the initialization to 90 % and 98 % in every kernel.

Claims (Wang et al., Iterative Soft Shrinkage Learning for Efficient Image
Super-Resolution, ICCV 2023): a network that shrinks its low weights by a factor, from a
random start and without dense pre-training, beats one-shot magnitude pruning at the
same sparsity; and it beats iterative hard thresholding (IHT, the factor 0), because
gradients flow through a nearly dense network. The paper's tables are of PSNR.

Every kernel loses the same share, as in the paper, where one-shot ranks all weights
together: at 98 % the first convolution keeps 2 of 144 weights. The paper shrinks for
some 100,000 steps at learning rate 2e-4 with factor 0.95; here are 396 at 3e-3. A low
weight under a steady update settles at factor / (1 - factor) of it, which is larger
here against the weights, so the factors 0.8 and 0.5 are tried too.

Found, seed 0 (dense 99.44 %; one-shot is recalibrated, not trained on):

          one-shot  ISS-P 0.95, 0.8, 0.5     IHT  ISS-R
    90 %     95.56  98.06, 96.39, 98.33    98.61  97.78
    98 %     23.89  60.28, 61.39, 63.61    72.50  70.28

All beat one-shot. Soft shrinkage is not better than hard thresholding here: IHT is
ahead at each of three factors, at 98 % the more the softer. Another processor, which
adds in another order, gave 98.33, 97.50 and 98.89 against 98.33 % at 90 %, and 60.00,
61.11 and 65.83 against 73.33 % at 98 %; batches of 32 and rate 2e-3 gave 62.78, 65.28
and 69.17 against 72.22 %. Hard thresholding all but fixes its mask early and has the
whole run to train what is left; what ISS-P loses when the low set goes to zero at step
396 it must make good in 264 steps [inferred]. The paper fine-tunes for over 200,000.

Command: `python -m experiments.train digits_issp`.
"""

from experiments.config import Claim, Config

AGAIN = ("mnist_arena", "edsr")


def get_config() -> Config:
    """The settings."""
    return Config(
        data="digits",
        model="digits_resnet",
        batch=64,
        dense={"epochs": 20, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        runs={
            "one_shot": {
                "method": "one_shot",
                "sparsity": (0.9, 0.98),
                "stats_momentum": 0.9,
            },
            "issp": {
                "method": "issp",
                "sparsity": (0.9, 0.98),
                "factors": (0.95, 0.8, 0.5, 0.0),
                "batch": 64,
                "epochs": 30,
                "end": 0.6,
                "lr": 3e-3,
                "drops_at": (0.7, 0.9),
            },
            "issr": {
                "method": "issr",
                "sparsity": (0.9, 0.98),
                "increments": (0.01,),
                "every": 5,
                "limit": 0.5,
                "batch": 64,
                "epochs": 30,
                "end": 0.6,
                "lr": 3e-3,
                "drops_at": (0.7, 0.9),
            },
        },
        claims=CLAIMS,
    )


def _beats(ours, *others) -> bool:
    return all(ours.after > other.after for other in others)


CLAIMS = (
    *(
        Claim(
            f"{name} beats one-shot at {share}, recalibrated or not",
            (f"{run}, {share}", f"one-shot {share}", f"one-shot {share}, recalibrated"),
            _beats,
        )
        for name, run in (("ISS-P", "iss-p 0.95"), ("ISS-R", "iss-r 0.01"))
        for share in ("90%", "98%")
    ),
    *(
        Claim(
            f"ISS-P {factor} at {share} is no worse than hard thresholding",
            (f"iss-p {factor}, {share}", f"iht, {share}"),
            lambda soft, hard: soft.after >= hard.after,
        )
        for share in ("90%", "98%")
        for factor in ("0.95", "0.8", "0.5")
    ),
    Claim(
        "every count is exactly the one asked for",
        tuple(
            f"{run}, {share}"
            for run in ("iss-p 0.95", "iss-p 0.8", "iss-p 0.5", "iht", "iss-r 0.01")
            for share in ("90%", "98%")
        ),
        lambda *rows: all(row.nonzero == row.kept for row in rows),
    ),
)
