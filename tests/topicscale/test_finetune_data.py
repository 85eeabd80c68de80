"""Labelled input: every format gives the same rows, and what is left out is counted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from topicscale.errors import ConfigError, InputError
from topicscale.finetune.data import held_out, kind_of, read

SHARED = Path(__file__).parents[3] / "shared" / "data"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
ROWS = [
    {"premise": "A man sleeps", "hypothesis": "He is awake", "label": "contradiction"},
    {"premise": "  A dog, a big one, runs ", "hypothesis": 'It "moves"', "label": "ENTAILMENT"},
    {"premise": "Ein Hund läuft", "hypothesis": "Regen", "label": "neutral"},
]
CLEAN = [
    {"sentence1": "A man sleeps", "sentence2": "He is awake", "label": "contradiction"},
    {"sentence1": "A dog, a big one, runs", "sentence2": 'It "moves"', "label": "entailment"},
    {"sentence1": "Ein Hund läuft", "sentence2": "Regen", "label": "neutral"},
]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"pairs.{kind}"
    names = list(ROWS[0])
    if kind.startswith(("csv", "tsv")):
        if kind.startswith("csv"):
            lines = [",".join(names), *(",".join('"' + row[name].replace('"', '""') + '"' for name in names) for row in ROWS)]
        else:
            lines = ["\t".join(names), *("\t".join(row[name] for name in names) for row in ROWS)]
        text = "\n".join(lines) + "\n"
        with gzip.open(path, "wt", encoding="utf-8") if kind.endswith(".gz") else path.open("w", encoding="utf-8") as file:
            file.write(text)
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    elif kind == "jsonl.zst":
        with pa.CompressedOutputStream(str(path), "zstd") as out:
            out.write("\n".join(json.dumps(row) for row in ROWS).encode())
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        write_deltalake(str(path), pa.Table.from_pylist(ROWS))
    return path


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "jsonl", "jsonl.zst", "parquet", "delta"])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str):
    loaded = read([str(write(tmp_path, kind))], {})
    assert (loaded.kind, loaded.table.to_pylist(), loaded.dropped) == ("nli", CLEAN, {})
    assert loaded.columns == {"sentence1": "premise", "sentence2": "hypothesis", "label": "label"}


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        (("anchor", "positive", "negative"), "pairs"),
        (("sentence1", "sentence2", "score"), "scored"),
        (("sentence1", "sentence2", "label"), "nli"),
        (("text", "label"), "classes"),
        (("text",), "texts"),
        (("sentence1", "sentence2"), None),
    ],
)
def test_kind_of(columns, kind):
    assert kind_of(columns) == kind


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def test_what_is_left_out_is_counted(tmp_path: Path):
    file = jsonl(
        tmp_path / "a.jsonl",
        [{"text": "a", "label": 1}, {"text": " ", "label": "x"}, {"text": "b", "label": None}, {"text": "c", "label": "y"}],
    )
    with open(file, "a") as out:
        out.write("\nno json\n[1]\n")
    loaded = read([file], {})
    assert loaded.table.to_pylist() == [{"text": "a", "label": "1"}, {"text": "c", "label": "y"}]
    assert loaded.dropped == {"bad_row": 2, "empty_text": 1, "empty_label": 1}


def test_a_pair_without_a_negative_is_kept(tmp_path: Path):
    rows = [{"question": f"q{i}", "answer": f"a{i}", "hard_negative": "n" if i == 1 else [None, "", " "][i % 3]} for i in range(4)]
    for columns in ({}, {"anchor": "question", "positive": "answer", "negative": "hard_negative"}):
        loaded = read([jsonl(tmp_path / "a.jsonl", rows)], columns)
        assert loaded.table["negative"].to_pylist() == [None, "n", None, None]
        assert loaded.dropped == {}


def test_csv_rows_of_another_length_are_counted(tmp_path: Path):
    (tmp_path / "a.csv").write_text("title,abstract\na,b\nc\nd,e\nf,g,h\n")
    loaded = read([str(tmp_path / "a.csv")], {"anchor": "title", "positive": "abstract"})
    assert loaded.table.to_pydict() == {"anchor": ["a", "d"], "positive": ["b", "e"]}
    assert loaded.dropped == {"bad_row": 2}


def test_a_file_without_header_or_quoting(tmp_path: Path):
    (tmp_path / "a.tsv").write_text('g\t5.0\tsay "yes\tno\ng\t0.0\ta\t"b"\ng\tNaN\ta\tb\ng\thigh\ta\tb\n')
    columns = {"sentence1": "_c2", "sentence2": "_c3", "score": "_c1"}
    loaded = read([str(tmp_path / "a.tsv")], columns, reader={"header": False, "quote": ""}, score_range=(0, 5))
    assert loaded.table.to_pydict() == {"sentence1": ['say "yes', "a"], "sentence2": ["no", '"b"'], "score": [1.0, 0.0]}
    assert loaded.dropped == {"bad_score": 2}


@pytest.mark.parametrize("labels", [[0, 1, 2], ["0", "1", "2"], [0.0, 1.0, 2.0]])
def test_numbered_labels_have_the_order_of_mnli(tmp_path: Path, labels):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"sentence1": list("abc"), "sentence2": list("def"), "label": labels}), file)
    assert read([str(file)], {}).table["label"].to_pylist() == ["entailment", "neutral", "contradiction"]


def test_unlabelled_pairs_are_dropped_and_wrong_labels_refused(tmp_path: Path):
    rows = [{"premise": c, "hypothesis": c, "gold_label": label} for c, label in zip("abc", ["neutral", "-", "Neutral"], strict=True)]
    assert read([jsonl(tmp_path / "a.jsonl", rows)], {}).dropped == {"unknown_label": 1}
    with pytest.raises(InputError, match="'good'"):
        read([jsonl(tmp_path / "b.jsonl", [{**row, "gold_label": "good"} for row in rows])], {})


def test_scores_out_of_range_say_what_to_do(tmp_path: Path):
    file = jsonl(tmp_path / "a.jsonl", [{"sentence1": "a", "sentence2": "b", "score": s} for s in (0.5, 4.2)])
    with pytest.raises(InputError, match=r"from 0 to 1\. Got 4\.2 .*score_range: \[0, 5\]"):
        read([file], {})
    with pytest.raises(InputError, match=r"from 1 to 5\. Got 0\.5"):
        read([file], {}, score_range=(1, 5))
    assert read([file], {}, score_range=(0, 5)).table["score"].to_pylist() == pytest.approx([0.1, 0.84])


def test_refusals(tmp_path: Path):
    file = jsonl(tmp_path / "a.jsonl", [{"title": "a", "abstract": "b"}] * 3)
    with pytest.raises(InputError, match=r"'titel'.*Did you mean 'title'"):
        read([file], {"anchor": "titel", "positive": "abstract"})
    with pytest.raises(ConfigError, match="'anker'"):
        read([file], {"anker": "title"})
    with pytest.raises(InputError, match=r"\(text, label\).*It has: title, abstract"):
        read([file], {}, kinds=("classes",))
    with pytest.raises(InputError, match="each"):
        read([file], {"anchor": "title", "positive": "title"})
    with pytest.raises(InputError, match=r"two usable rows of pairs. Got 0 instead \(2 empty_text\)"):
        read([jsonl(tmp_path / "b.jsonl", [{"anchor": "a", "positive": ""}] * 2)], {})
    both = [{"sentence1": "a", "sentence2": "b", "score": 0.1, "label": "neutral"}] * 2
    with pytest.raises(InputError, match="both scores"):
        read([jsonl(tmp_path / "c.jsonl", both)], {})
    assert read([str(tmp_path / "c.jsonl")], {}, kinds=("scored", "nli")).kind == "scored"
    assert read([str(tmp_path / "c.jsonl")], {"label": "label"}).kind == "nli"


def test_held_out_keeps_alike_rows_together():
    anchors = [f"anchor {i % 200}" for i in range(1000)]
    table = pa.table({"anchor": anchors, "positive": [f"p {i}" for i in range(1000)]})
    train, held = held_out(table, 0.2, 42)
    assert train.num_rows + held.num_rows == 1000
    assert 130 <= held.num_rows <= 270
    assert not set(train["anchor"].to_pylist()) & set(held["anchor"].to_pylist())
    assert held_out(table, 0.2, 43)[1]["anchor"].to_pylist() != held["anchor"].to_pylist()
    # rows that come later move none of the others
    assert held_out(table.slice(0, 500), 0.2, 42)[1].to_pylist() == [
        row for row in table.slice(0, 500).to_pylist() if row in held.to_pylist()
    ]
    classes = pa.table({"text": ["a", "b"] * 50, "label": [str(i % 3) for i in range(100)]})
    parts = [set(part["text"].to_pylist()) for part in held_out(classes, 0.5, 1)]
    assert not parts[0] & parts[1]
    assert held_out(classes, 0.0, 1)[1].num_rows == 0
    with pytest.raises(ConfigError, match="below 1"):
        held_out(classes, 1.0, 1)


@shared
def test_known_corpora():
    stsb = read(
        [str(SHARED / "stsb_dev.tsv")],
        {"sentence1": "_c5", "sentence2": "_c6", "score": "_c4"},
        reader={"header": False, "quote": ""},
        score_range=(0, 5),
    )
    assert (stsb.table.num_rows, stsb.dropped) == (1500, {})
    sick = read([str(SHARED / "sick_train.tsv")], {}, kinds=("nli",))
    counts = {row["values"]: row["counts"] for row in sick.table["label"].value_counts().to_pylist()}
    assert counts == {"neutral": 2536, "entailment": 1299, "contradiction": 665}
    assert read([str(SHARED / "banking77_train.csv")], {}).table.num_rows == 10_003


def test_a_format_that_the_name_does_not_tell_can_be_named(tmp_path):
    file = tmp_path / "pairs.dat"
    file.write_text("anchor,positive\na,b\nc,d\n")
    with pytest.raises(InputError, match="cannot be told from its name"):
        read([str(file)], {})
    assert read([str(file)], {}, reader={"format": "csv"}).table.num_rows == 2
    with pytest.raises(ConfigError, match=r"input\.format must be one of"):
        read([str(file)], {}, reader={"format": "xml"})
