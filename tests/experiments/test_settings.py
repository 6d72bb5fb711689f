"""Every setting of every configuration is looked at before anything is trained."""

import pytest

from experiments import build, config, rules
from experiments.config import ConfigError


def refused(name, setting):
    with pytest.raises(ConfigError) as caught:
        build.check(config.override(config.load(name), [setting]))
    return str(caught.value)


def test_every_configuration_passes_and_so_does_its_small_form():
    for name in config.names():
        build.check(config.load(name))


@pytest.mark.parametrize(
    "text",
    ["9" * 400, "-" + "9" * 400, "{[]: 1}", "(" * 300, "1j", "b'x'", "1e-50", "1e300"],
)
@pytest.mark.parametrize("key", ["swd.lr", "swd.epochs", "swd.sparsity", "batch"])
def test_no_value_is_a_traceback(key, text):
    assert key in refused("digits", f"{key}={text}")


@pytest.mark.parametrize("text", ["x", "True", "(0.5,)", "1j", "1.0"])
def test_what_may_be_none_is_none_or_a_number(text):
    key = "one_shot.stats_momentum"  # None in the configuration
    assert f"`{key}` must be" in refused("digits_asl", f"{key}={text}")


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("digits_gap", "*.partitions=('(',)", "no regular expression"),
        ("digits_kstarts", "*.scope=(", "no regular expression"),
        ("digits_nm", "*.pairs=((1, 'a'),)", "tuple[tuple[int, int], ...]"),
        ("digits_nm", "*.pairs=((1, 2, 3),)", "tuple[tuple[int, int], ...]"),
        ("digits_at_init", "*.criteria=('snap',)", "did you mean snip"),
        ("digits_kstarts", "*.arms=('randon',)", "did you mean random"),
        ("cifar_arena", "*.rules=('l3',)", "did you mean l1"),
        ("mnist_gsm", "setup.inputs=pixel", "did you mean pixels"),
        ("cora", "*.schedule=cosin", "did you mean cosine"),
        ("edsr", "setup.scale=0", "`setup.scale` must be at least 1"),
        ("edsr", "setup.steps=0", "`setup.steps` must be at least 1"),
        ("digits", "swd.epochs=3000000000", "must be at most 2,147,483,647"),
        ("digits", "steps_per_dispatch=3000000000", "below 2**31"),
        ("digits", "swd.lr=1e-50", "float32 holds"),
        ("digits", "swd.a_min=1e9", "`swd.a_min` must not exceed `a_max`"),
        (
            "mnist_powerprop_notebook",
            "*.keep=(1.5,)",
            "a share greater than 0 and at most 1",
        ),
    ],
)
def test_a_setting_that_could_not_work_is_said_first(name, setting, message):
    if setting.startswith("*."):  # of whichever run has it
        key = setting[2:].partition("=")[0]
        parts = config.load(name).parts()
        run = next(n for part in parts for n, run in part.runs.items() if key in run)
        setting = run + setting[1:]
    assert message in refused(name, setting)


@pytest.mark.parametrize(
    ("value", "wanted", "fits"),
    [
        (1, float, True),
        (True, float, False),
        (True, int, False),
        (True, bool, True),
        (1.0, int, False),
        (None, float | None, True),
        ("x", float | None, False),
        ((1, 2), tuple[int, ...], True),
        ((1, 2), tuple[int, int], True),
        ((1,), tuple[int, int], False),
        (((1, 2.5),), tuple[tuple[float, float], ...], True),
        (((1, "a"),), tuple[tuple[float, float], ...], False),
        ({"peak": 1}, float | dict[str, float], True),
        (1, tuple[int, ...], False),
    ],
)
def test_kinds_by_hand(value, wanted, fits):
    if fits:
        rules.check_kind("x", value, wanted)
        return
    with pytest.raises(ConfigError, match="`x` must be of the kind"):
        rules.check_kind("x", value, wanted)
