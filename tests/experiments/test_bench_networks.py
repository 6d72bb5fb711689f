"""The proof table: a missed minimum or bound is a failure, and the page shows all."""

import pytest

from experiments.bench.networks import Row, table
from tests.surgery.nets import Net

NET = Net("Tiny", lambda: None, groups=3, fixed=10, train=True)  # type: ignore[arg-type]
GOOD = Row(
    net=NET,
    groups=3,
    reach=0.9,
    parameters=(100, 40),
    operations=(2_000_000, 800_000),
    forward=1e-16,
    gradient=2e-15,
    train=3e-14,
    others=0.0,
    single=4e-7,
    single_train=5e-5,
)


def test_a_row_that_holds_and_each_way_it_may_not():
    assert GOOD.holds
    for change in (
        {"groups": 2},
        {"reach": 0.89},
        {"forward": 2e-10},
        {"gradient": 2e-10},
        {"train": 2e-10},
        {"others": 2e-10},
        {"single": 2e-5},
        {"single_train": 2e-3},
    ):
        assert not GOOD._replace(**change).holds, change


def test_no_train_mode_is_a_dash():
    plain = GOOD._replace(train=None, single_train=None)
    assert plain.holds
    last = table([GOOD, plain]).splitlines()[-2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in last]
    assert cells[0] == [
        "Tiny",
        "3 (3)",
        "90.00 (90.00)",
        "100 -> 40",
        "2 -> 0.8",
        "1e-16",
        "2e-15",
        "3e-14",
        "0",
        "4e-07",
        "5e-05",
    ]
    assert cells[1][7] == cells[1][10] == "-"


@pytest.mark.slow
def test_one_network_measured():
    from experiments.bench.networks import NETS, measure

    (net,) = [net for net in NETS if net.name.startswith("scan")]
    row = measure(net)
    assert row.holds and row.groups == 2
