"""The corpus of docstrings: what is taken from a docstring, and that the same environment gives the same corpus."""

import json

from jobs.docstrings import MAX_CHARS, MIN_CHARS, build_corpus, prose

NUMPY = """Return the evenly spaced numbers.

    They are spaced over ``interval``, see :func:`~numpy.linspace`,
    and **never** fall outside.

    Parameters
    ----------
    start : int
        The first.
    """


def test_prose_ends_where_the_parameters_begin() -> None:
    assert prose(NUMPY) == "Return the evenly spaced numbers.\nThey are spaced over interval, see numpy.linspace, and never fall outside."


def test_prose_knows_the_usual_styles() -> None:
    for section in ("Args:\n    x: the value", ":param x: the value", ">>> f(1)\n1", "Returns:\n    a value", "Example::\n\n    f(1)"):
        assert prose(f"Do a thing.\n\n{section}\n") == "Do a thing.", section


def test_prose_keeps_dunder_names_and_is_bounded() -> None:
    assert prose("Call __init__ of the class.") == "Call __init__ of the class."
    assert len(prose("word " * 5000)) <= MAX_CHARS


def test_a_small_corpus_is_the_beginning_of_a_larger_one(tmp_path) -> None:
    assert build_corpus(tmp_path / "large.jsonl", 60, processes=2) == 60
    assert build_corpus(tmp_path / "small.jsonl", 20, processes=1) == 20
    large = (tmp_path / "large.jsonl").read_text(encoding="utf-8").splitlines()
    assert (tmp_path / "small.jsonl").read_text(encoding="utf-8").splitlines() == large[:20]
    rows = [json.loads(line) for line in large]
    assert {tuple(row) for row in rows} == {("id", "text", "site", "title")}
    assert all(len(row["text"]) > MIN_CHARS for row in rows)
    assert len({row["text"] for row in rows}) == len({row["id"] for row in rows}) == 60
