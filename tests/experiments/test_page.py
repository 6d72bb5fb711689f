"""The page of results: what is drawn anew, what is judged, what is written."""

import shutil

import numpy as np
import pytest

from experiments import config, files, page, panels, report, results
from experiments.config import Claim
from experiments.results import Row


def _row(run, after, **more):
    return Row(run, "m", asked=0.9, got=0.9, kept=1, nonzero=1, after=after, **more)


@pytest.mark.parametrize(
    ("gap", "word"),
    [(0.2, "holds"), (-0.2, "does not"), (0.0, "cannot be told here")],
)
def test_a_claim_is_judged_by_what_the_test_set_can_tell(gap, word):
    claim = Claim("a leads", ("a", "b"), lambda a, b: a.after > b.after)
    rows = [_row("a", 0.7 + gap / 2), _row("b", 0.7 - gap / 2)]
    random = np.random.default_rng(0)
    share = page._share(claim, "", rows, 360, random)
    assert page.Verdict("", share, drawn=True).word == word
    if not gap:
        assert share == pytest.approx(0.5, abs=0.1)
    assert page._share(claim, "other ", rows, 360, random) is None


def test_counts_are_not_drawn():
    claim = Claim("exact", ("a",), lambda a: a.nonzero == a.kept)
    assert page._share(claim, "", [_row("a", 0.5)], 360, np.random.default_rng(0)) == 1


def test_errors_by_hand():
    assert page.error(_row("a", 0.9), 360) == pytest.approx((0.09 / 360) ** 0.5)
    mean = _row("a", 0.9, extra={"sd": 0.02, "seeds": 4})
    assert page.error(mean, 360) == pytest.approx(0.01)
    lanes = _row("a", 0.9, extra={"deviation": 0.02, "seed 0": 0.9, "seed 1": 0.9})
    assert page.error(lanes, 360) == pytest.approx(0.02 / 2**0.5)
    assert page.error(_row("a", 0.9), None) == 0


def test_seeds_of_one_configuration_are_one_section(tmp_path):
    for seed in range(3):
        name = f"digits_seed{seed}.json"
        shutil.copy(page.RESULTS / name, tmp_path / name)
    shutil.copy(page.RESULTS / "digits_tpp_seed0.json", tmp_path)
    digits, tpp = page.sections(tmp_path)
    assert (digits.name, len(digits.files), tpp.name) == ("digits", 3, "digits_tpp")
    rows = [results.load(file)[1] for file in digits.files]
    after = [next(r.after for r in seed if r.run == "swd 98%") for seed in rows]
    found = {row.run: (mean, spread) for row, mean, spread in page.merged(digits)}
    assert found["swd 98%"] == pytest.approx((np.mean(after), np.std(after, ddof=1)))


def test_the_page_has_every_section_with_its_command_and_figure(tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(page.RESULTS / "digits_seed0.json", tmp_path / "in")
    written = page.write(tmp_path / "in", tmp_path / "docs")
    text = written.read_text()
    (rows,) = [found.rows[0] for found in page.sections(tmp_path / "in")]
    for row in rows:
        assert f"| {row.run} | {row.nonzero:,} |" in text
        assert f"| {100 * row.after:.2f} ± " in text
    assert "`python -m experiments.train digits --seed 0`" in text
    assert "| [digits](#digits) | 0 | 7 |" in text
    assert "**holds**: every count is exactly the one asked for" in text
    assert "(figures/results_digits.png)" in text
    assert (tmp_path / "docs" / "figures" / "results_digits.png").stat().st_size > 5000


def test_a_damaged_result_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "digits_seed0.json").write_text("{")
    monkeypatch.setattr(page, "write", lambda: page.sections(tmp_path))
    assert report.main([]) == 2
    assert "digits_seed0.json is damaged" in capsys.readouterr().err


def _grid(methods=11):
    return [
        (
            _row(f"{chr(97 + m)} {share}%", 0.9 - m / 100, extra={"deviation": 0.01}),
            0.9 - m / 100 - share / 1000,
            0.002,
        )
        for m in range(methods)
        for share in (90, 95, 99.5)
    ]


def test_a_small_form_is_no_evidence(tmp_path):
    facts, rows = results.load(page.RESULTS / "digits_seed0.json")
    results.save(tmp_path / "digits_seed0.json", rows, **facts, small=True)
    with pytest.raises(files.FileError, match="is of a small form, which is no eviden"):
        page.sections(tmp_path)
    assert "No accuracy of it is evidence" in report.text({**facts, "small": True}, [])
    assert "No accuracy" not in report.text(facts, [])


def test_errors_are_those_of_the_test_examples_that_were_used(tmp_path):
    facts, rows = results.load(page.RESULTS / "digits_seed0.json")
    fewer = {**facts["settings"], "test_examples": 90}
    known = [
        page.Section("digits", (), ({**facts, "settings": settings},), (rows,)).tests
        for settings in (facts["settings"], fewer)
    ]
    assert known == [360, 90]


def test_many_methods_are_a_table_with_a_column_for_each_sparsity(tmp_path):
    points = [panels.point(*found) for found in _grid()]
    points.append((_row("alone 95%", 0.5), 0.5, 0.0))
    cells = panels.grid(points)
    assert len(cells) == 11 and panels.grid(points[:12]) == {}
    assert panels.ranked(cells) == list("abcdefghijk")
    dense = (_row("dense", 0.95), 0.95, 0.0)
    lines = panels.table(cells, dense)
    assert lines[2] == "| | 90 % | 95 % | 99.5 % |"
    assert lines[4] == "| dense, all weights | 95.00 | | |"
    assert lines[5] == "| a | 81.00 ± 1.00 | 80.50 ± 1.00 | 80.05 ± 1.00 |"
    place = tmp_path / "grid.png"
    panels.draw(place, cells, dense, title="t", label="accuracy, %")
    assert place.stat().st_size > 10_000


def test_a_mean_knows_its_deviation_and_a_bar_ends_no_cell():
    """The five seeds of K-starts on MNIST deviate by 0.069 points at 90 %."""
    name = "authors_lenet300_k_starts"
    section = next(s for s in page.sections(page.RESULTS) if s.name == name)
    lines = page._text(section, page.verdicts(section), None).splitlines()
    head = lines.index("| | 50 % | 70 % | 90 % | 95 % |")
    table = {line.split(" | ")[0]: line for line in lines[head : head + 12]}
    assert table["| random"].split(" | ")[3] == "97.80 ± 0.07"
    assert r"| K-starts \|g\|" in table


def test_a_row_with_fewer_weights_than_asked_says_so():
    row = _row("a 90%", 0.9)._replace(kept=10, nonzero=7)
    assert panels._cell((row, 0.9, 0.0)) == "90.00 (7 weights)"


def test_a_papers_figures_stand_beside_ours():
    cora = next(s for s in page.sections(page.RESULTS) if s.name == "cora")
    lines = page._table(cora)
    head = next(line for line in lines if line.startswith("| run"))
    assert head.endswith("| after | paper | further numbers |")
    dense = next(line for line in lines if line.startswith("| dense |"))
    assert " | 81.5 | " in dense and " |  | " in lines[-1]
    digits = next(s for s in page.sections(page.RESULTS) if s.name == "digits")
    assert not any("paper" in line for line in page._table(digits))


def test_what_360_images_cannot_tell_is_asked_of_more():
    """Each method of digits has a configuration on other data."""
    names = [n for n in config.names() if n.startswith("digits_") and n != "digits_all"]
    of = {s.name: s.facts[0]["config"] for s in page.sections(page.RESULTS)}
    for name in names:
        again = getattr(page._module(name), "AGAIN", ())
        assert again, f"{name}: give `AGAIN`, configurations on other data"
        others = [config.load(of.get(other, other)) for other in again]
        assert all(other.data != "digits" for other in others)


def test_a_section_says_where_it_is_asked_again(tmp_path):
    shutil.copy(page.RESULTS / "digits_aswl_seed0.json", tmp_path)
    (section,) = page.sections(tmp_path)
    again = "setting: [mnist_arena](#mnist_arena), `authors_lenet300` (not run here),"
    assert again in page._text(section, page.verdicts(section), None)
    assert again not in page._text(section, [page.Verdict("a", 1.0, drawn=True)], None)
