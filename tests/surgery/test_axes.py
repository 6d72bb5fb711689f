"""The axis algebra: for every choice, related axes keep related positions.

A random program of concatenations, flattenings, cuts, splits and unifications is run on
terms; each step records what must hold between the masks. Then coordinates are chosen
at random and every record is checked with NumPy.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune.surgery import _axes as ax
from jprune.surgery._layout import Choice, Solver, Unsolvable, labels


def random_choice(terms, seed, keep=0.6):
    rng = np.random.default_rng(seed)
    atoms = {}
    for term in terms:
        for atom in ax.leaves(term):
            if not atom.frozen and atom not in atoms:
                mask = rng.random(atom.size) < keep
                mask[rng.integers(atom.size)] = True
                atoms[atom] = mask
    return Choice(atoms)


def run_program(draw):
    """A pool of terms and the checks that must hold for any choice."""
    pool = [ax.Atom(draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12]))) for _ in range(3)]
    if draw(st.booleans()):
        ax.freeze(pool[0], ax.Reason("by the test"))
    checks = []
    for _ in range(draw(st.integers(1, 10))):

        def pick():
            return pool[draw(st.integers(0, len(pool) - 1))]  # noqa: B023

        op = draw(st.sampled_from(["concat", "product", "cut", "split", "unify"]))
        s = pick()
        try:
            if op == "concat":
                parts = [s, pick()]
                new = [ax.concat(parts)]
                checks.append(("concat", new[0], parts))
            elif op == "product":
                parts = [s, pick()]
                if s.size * parts[1].size > 200:
                    continue
                new = [ax.product(parts)]
                checks.append(("product", new[0], parts))
            elif op == "cut":
                if s.size < 1:
                    continue
                at = draw(st.integers(0, s.size))
                new = ax.cut(s, [at, s.size - at])
                checks.append(("concat", s, new))
            elif op == "split":
                divisors = [d for d in range(1, s.size + 1) if s.size % d == 0]
                if not divisors:
                    continue
                d = draw(st.sampled_from(divisors))
                new = ax.split(s, [d, s.size // d])
                checks.append(("product", s, new))
            else:
                mates = [t for t in pool if t.size == s.size]
                t = mates[draw(st.integers(0, len(mates) - 1))]
                ax.unify(s, t)
                checks.append(("concat", s, [t]))
                new = []
        except ax.StructureError:
            continue
        pool += [t for t in new if 0 < t.size <= 200]
    return pool, checks


def assert_check(choice, check):
    kind, result, parts = check
    got = choice.layout(result).keep
    masks = [choice.layout(p).keep for p in parts]
    if kind == "concat":
        want = np.concatenate(masks)
    else:
        want = np.logical_and.outer(masks[0], masks[1]).reshape(-1)
    np.testing.assert_array_equal(got, want)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(0, 1000))
def test_related_axes_keep_related_positions(data, seed):
    pool, checks = run_program(data.draw)
    choice = random_choice(pool, seed)
    for check in checks:
        assert_check(choice, check)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(0, 1000))
def test_solve_inverts_layout(data, seed):
    pool, _ = run_program(data.draw)
    choice = random_choice(pool, seed)
    solver = Solver()
    for term in pool:
        solver.add(term, choice.layout(term).keep)
    again = Choice(solver.solve())
    for term in pool:
        np.testing.assert_array_equal(again.layout(term).keep, choice.layout(term).keep)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(0, 1000))
def test_classes_partition_the_removed_positions(data, seed):
    pool, _ = run_program(data.draw)
    choice = random_choice(pool, seed)
    for term in pool:
        lay = choice.layout(term)
        assert lay.mult.sum() == (~lay.keep).sum()
        np.testing.assert_array_equal(lay.rep[lay.rep], lay.rep)
        np.testing.assert_array_equal(lay.rep[lay.keep], np.flatnonzero(lay.keep))
        cells = [lay.kept, lay.classes]
        for i in range(lay.size):
            cell = cells[int(not lay.keep[i])]
            assert cell[lay.index[i]] == lay.rep[i]


def test_unify_is_idempotent():
    a, b = ax.Atom(6), ax.Atom(6)
    ax.unify(a, b)
    ax.unify(a, b)
    assert ax.resolve(a) is ax.resolve(b)


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 1000))
def test_unify_is_sound_in_any_order(order, seed):
    """The same facts in another order: every one of them holds in the end."""
    a, b, c, d = (ax.Atom(n) for n in (12, 12, 4, 8))
    grid, pair = ax.split(a, (3, 4)), ax.concat((c, d))
    facts = [(a, b), (b, pair), (c, ax.cut(d, (4, 4))[0]), (grid[1], c)]
    for index in order:
        ax.unify(*facts[index])
    choice = random_choice([a, b, c, d], seed)
    for s, t in facts:
        np.testing.assert_array_equal(choice.layout(s).keep, choice.layout(t).keep)
    assert len({atom for t in (a, b, c, d) for atom in ax.leaves(t)}) <= 4


def test_frozen_spreads_through_unify():
    a, b = ax.Atom(6), ax.Atom(6)
    ax.freeze(a, ax.Reason("said so", "sort"))
    ax.unify(b, a)
    assert ax.why_frozen(b) == ax.Reason("said so", "sort")


def test_an_axis_of_single_coordinates_freezes_what_equals_it():
    """A grouped convolution splits it; the kernel's axis must not stay free."""
    a, b, c = ax.Atom(4), ax.Atom(2), ax.Atom(4)
    ax.cut(a, (1, 1, 1, 1))
    _, inner = ax.split(a, (2, 2))
    ax.unify(inner, b)
    ax.unify(c, ax.cut(ax.product((a, ax.Atom(1))), (4,))[0])
    assert ax.is_frozen(b) and ax.is_frozen(c)
    assert ax.why_frozen(b) == ax.SINGLE == ax.why_frozen(a)


def test_flatten_then_cut_keeps_the_channels():
    h, c = ax.Atom(4), ax.Atom(6)
    ax.freeze(h, ax.Reason("space"))
    first, second = ax.cut(ax.product((h, c)), [12, 12])
    assert ax.same(first, second) is False
    assert {a for a in ax.leaves(first) if not a.frozen} == {c}


def test_group_norm_over_an_unaligned_concatenation_stays_prunable():
    """24 + 16 channels in 4 groups of 10."""
    a, b = ax.Atom(24), ax.Atom(16)
    groups, rest = ax.split(ax.concat((a, b)), (4, 10))
    assert ax.is_frozen(groups)
    assert not ax.is_frozen(rest)
    choice = random_choice([a, b], 3, keep=0.4)
    whole = choice.layout(ax.concat((a, b))).keep
    np.testing.assert_array_equal(whole, np.tile(choice.layout(rest).keep, 4))
    assert not whole.all()


def test_a_piece_of_size_zero():
    """It is frozen, and leaves the other piece the whole axis."""
    a = ax.Atom(16)
    first, none = ax.cut(a, (16, 0))
    assert first is a and none.size == 0 and ax.is_frozen(none)


def test_sizes_that_do_not_nest_are_refused():
    term = ax.product((ax.Atom(6), ax.Atom(4)))
    with pytest.raises(ax.StructureError, match="do not nest"):
        ax.split(term, (4, 6))


def test_unify_freezes_what_it_cannot_reconcile():
    s, t = (ax.product((ax.Atom(m), ax.Atom(n))) for m, n in ((6, 4), (4, 6)))
    ax.unify(s, t, ax.Reason("add", "add"))
    assert ax.is_frozen(s) and ax.is_frozen(t)
    assert ax.why_frozen(s).primitive == "add"


def test_solver_refuses_a_mask_that_is_no_product():
    term = ax.product((ax.Atom(2), ax.Atom(3)))
    with pytest.raises(Unsolvable, match="choice per factor"):
        Solver().add(term, np.array([1, 1, 0, 1, 1, 1], bool))


def test_solver_refuses_disagreement_and_frozen_axes():
    a, b = ax.Atom(3), ax.Atom(3)
    solver = Solver()
    solver.add(a, np.array([1, 1, 0], bool))
    with pytest.raises(Unsolvable, match="different coordinates"):
        solver.add(a, np.array([1, 0, 1], bool))
    ax.freeze(b, ax.Reason("model output"))
    with pytest.raises(Unsolvable, match="model output"):
        solver.add(b, np.array([1, 1, 0], bool))


def test_an_emptied_product_empties_one_factor():
    heads, dim = ax.Atom(2), ax.Atom(3)
    solver = Solver()
    solver.add(ax.product((heads, dim)), np.zeros(6, bool))
    solver.add(dim, np.ones(3, bool))
    keep = solver.solve()
    assert not keep[heads].any() and keep[dim].all()


def test_labels_of_a_flattened_axis():
    h, c = ax.Atom(2), ax.Atom(3)
    term = ax.product((h, c))
    assert labels(term, c).tolist() == [0, 1, 2, 0, 1, 2]
    assert labels(term, h).tolist() == [0, 0, 0, 1, 1, 1]
    assert labels(ax.concat((h, c)), c).tolist() == [-1, -1, 0, 1, 2]
    assert math.prod((2, 3)) == term.size
