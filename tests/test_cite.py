"""Citations: BibTeX of the methods, and CITATION.cff as its mirror.

Run this file (`python tests/test_cite.py`) to rewrite the `references:` of CITATION.cff
after `REFERENCES` has changed.
"""

import json
import re
import unicodedata
from pathlib import Path

import pytest
import yaml

import jprune
from jprune._cite import REFERENCES, Reference, cited_names

CITATION = Path(__file__).parents[1] / "CITATION.cff"
MARK = "references:\n"


def as_cff(ref: Reference) -> str:
    """The entry of CITATION.cff that says the same as `ref`."""
    kind = {"article": "article", "inproceedings": "conference-paper"}
    where = {"article": "journal", "inproceedings": "collection-title"}
    first, _, last = ref.pages.partition("--")
    fields = {
        "type": kind.get(ref.kind, "generic"),
        "title": json.dumps(ref.title, ensure_ascii=False),
        where.get(ref.kind, "medium"): json.dumps(ref.venue),
        "volume": ref.volume,
        "start": first,
        "end": last,
        "year": str(ref.year),
        "doi": ref.doi,
        "url": f"https://arxiv.org/abs/{ref.arxiv}",
    }
    lines = [f"{name}: {value}" for name, value in fields.items() if value]
    lines.append("authors:")
    for author in ref.authors:
        family, given = author.split(", ")
        lines.append(f"  - family-names: {json.dumps(family, ensure_ascii=False)}")
        lines.append(f"    given-names: {json.dumps(given, ensure_ascii=False)}")
    return "  - " + "\n    ".join(lines) + "\n"


def expected_references() -> str:
    return MARK + "".join(as_cff(ref) for ref in REFERENCES)


def test_citation_file_mirrors_the_references():
    text = CITATION.read_text()
    assert text[text.index(MARK) :] == expected_references(), (
        "CITATION.cff and jprune/_cite.py differ: run `python tests/test_cite.py`."
    )


def test_citation_file_is_what_a_yaml_reader_sees():
    loaded = yaml.safe_load(CITATION.read_text())
    assert loaded["cff-version"] == "1.2.0"
    assert loaded["version"] == jprune.__version__
    assert loaded["license"] == "Apache-2.0"
    assert len(loaded["references"]) == len(REFERENCES)
    for entry, ref in zip(loaded["references"], REFERENCES, strict=True):
        assert (entry["title"], entry["year"]) == (ref.title, ref.year)
        names = [f"{a['family-names']}, {a['given-names']}" for a in entry["authors"]]
        assert tuple(names) == ref.authors


@pytest.mark.parametrize("ref", REFERENCES, ids=lambda ref: ref.key)
def test_reference_is_well_formed(ref: Reference):
    family = ref.authors[0].split(",")[0].split()[0].lower()
    plain = unicodedata.normalize("NFKD", family).encode("ascii", "ignore").decode()
    assert ref.key.startswith(f"{plain}{ref.year}")
    assert all(re.fullmatch(r"[^,]+, [^,]+", author) for author in ref.authors)
    assert re.fullmatch(r"\d{4}\.\d{4,5}", ref.arxiv)
    # A paper is not published before its preprint, with one exception.
    late = ref.key == "jayakumar2020top"
    assert late or ref.year >= 2000 + int(ref.arxiv[:2])
    assert ref.kind in ("article", "inproceedings", "misc")
    assert all(name == name.lower() for name in ref.methods) and ref.methods


def test_keys_are_unique():
    keys = [ref.key for ref in REFERENCES]
    assert len(set(keys)) == len(keys)


def test_bibtex_of_swd():
    assert jprune.cite("swd") == (
        "@article{tessier2022rethinking,\n"
        "  title = {{Rethinking Weight Decay for Efficient Neural Network Pruning}},\n"
        "  author = {Tessier, Hugo and Gripon, Vincent and Léonardon, Mathieu and "
        "Arzel, Matthieu and Hannagan, Thomas and Bertrand, David},\n"
        "  journal = {Journal of Imaging},\n"
        "  volume = {8},\n"
        "  pages = {64},\n"
        "  year = {2022},\n"
        "  doi = {10.3390/jimaging8030064},\n"
        "  eprint = {2011.10520},\n"
        "  archivePrefix = {arXiv},\n"
        "}"
    )


def test_top_kast_is_cited_where_it_was_published():
    text = jprune.cite("top-kast")
    assert text.startswith("@inproceedings{jayakumar2020top,")
    assert "volume = {33}" in text and "year = {2020}" in text


def test_a_method_is_found_by_short_name_function_and_any_case():
    assert jprune.cite("SWD") == jprune.cite("add_selective_decay")
    assert jprune.cite("gsm") == jprune.cite("mask_by_saliency")


def test_a_method_with_two_papers_gives_both():
    text = jprune.cite("saliency")
    assert "lee2019snip" in text and "molchanov2019importance" in text
    assert text.count("\n\n") == 1


@pytest.mark.parametrize("name", cited_names())
def test_every_name_gives_balanced_bibtex(name: str):
    text = jprune.cite(name)
    assert text.startswith("@") and text.count("{") == text.count("}")


def test_without_a_name_it_is_the_toolkit():
    text = jprune.cite()
    assert text.startswith("@software{jprune,")
    assert jprune.__version__ in text


def test_unknown_name_lists_near_ones_and_all():
    with pytest.raises(ValueError, match=r"\[jprune\] `name`") as caught:
        jprune.cite("add_selective_decays")
    message = str(caught.value)
    assert "Did you mean 'add_selective_decay'" in message
    assert all(name in message for name in cited_names())
    with pytest.raises(ValueError, match=r"got 'zzzz'\. Known:"):
        jprune.cite("zzzz")


if __name__ == "__main__":
    old = CITATION.read_text()
    CITATION.write_text(old[: old.index(MARK)] + expected_references())
