"""The state of a run and how its errors reach the user, without an engine."""

from __future__ import annotations

import io
import threading

import pyarrow as pa
import pytest

from jobs import cli
from jobs.engines import Engines
from jobs.job import Job, Partition, opened
from jobs.progress import Ui
from jobs.stages import cluster, embed, publish, represent
from jobs.status import status
from topicscale.config import Config, load
from topicscale.errors import RequestError, ResourceError
from topicscale.represent.steps import parse
from topicscale.store import Store
from topicscale.tables import TABLES


def job_of(path, *overrides: str) -> Job:
    config = load(overrides=list(overrides)) if overrides else Config()
    return Job(Store(path / "store", create=True), config, "run", Ui("quiet"), Engines(config))


def test_stages_that_end_at_once_lose_no_line_of_the_log(tmp_path) -> None:
    job = job_of(tmp_path)

    def end(stage: str) -> None:
        for number in range(5):
            job.whole(stage, f"{number:032d}", rows=number, seconds=0.0)

    threads = [threading.Thread(target=end, args=(stage,)) for stage in ("terms", "map")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logged = sorted((row["stage"], row["rows"]) for row in job.store.read("runs").to_pylist())
    assert logged == sorted((stage, number) for stage in ("terms", "map") for number in range(5))


def test_a_second_thread_does_not_take_the_engines_of_the_first(tmp_path) -> None:
    store = Store(tmp_path / "store", create=True)
    refused = []

    def work() -> None:
        try:
            with opened(store, Config(), "other", Ui("quiet")):
                refused.append(None)
        except ResourceError as error:
            refused.append(str(error))

    def elsewhere() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    with opened(store, Config(), "run", Ui("quiet")), opened(store, Config(), "within", Ui("quiet")):
        elsewhere()
    elsewhere()
    assert "Another job runs in this process" in refused[0]
    assert str(tmp_path / "store") in refused[0]
    assert refused[1:] == [None]


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("terms.top_n_words=5", {"publish"}),
        ("terms.min_df=2", {"terms", "publish"}),
        ("represent.representative_documents=5", {"publish"}),
        ("represent.map_documents=0", {"map", "publish"}),
        ("topics.rounds=2", {"calibrate"}),
        ("embedding.batch_tokens=512", set()),
        ("ray.actors=1", set()),
    ],
)
def test_a_change_redoes_only_what_depends_on_it(tmp_path, override: str, changed: set[str]) -> None:
    def prints(job: Job) -> dict[str, object]:
        partitions = [Partition(f"p{i}", None, 500, f"{i:032d}") for i in range(2)]
        embedded = {p.partition_id: p.digest for p in partitions}
        terms, placed = publish.terms_print(job, "refined", embedded), publish.map_print(job, "refined", embedded)
        return {
            "embed": embed.prints_of(job, partitions),
            "cluster": cluster.prints_of(job, partitions, embedded),
            "calibrate": cluster.pilot_print(job, embedded, 2),
            "terms": terms,
            "map": placed,
            "publish": publish.publish_print(job, terms, placed, "space"),
        }

    before, after = prints(job_of(tmp_path / "a")), prints(job_of(tmp_path / "b", override))
    assert {stage for stage in before if before[stage] != after[stage]} == changed


def test_vectors_of_another_precision_are_not_taken_over(tmp_path) -> None:
    assert embed.alike(job_of(tmp_path / "a")) != embed.alike(job_of(tmp_path / "b", "embedding.dtype=float32"))
    assert embed.space_of(job_of(tmp_path / "a")) == embed.space_of(job_of(tmp_path / "b", "embedding.dtype=float32"))


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "Broken pipe"), pa.ArrowInvalid("Parquet magic bytes not found"), OSError(28, "No space")]
)
def test_a_failed_engine_is_an_error_of_one_line(tmp_path, monkeypatch, capsys, error) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("jobs.run.run", fail)
    assert cli.main(["run", "--input", "x.csv", "--store", str(tmp_path)]) == cli.FAILED
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "run the same command again" in said


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("jobs.run.run", fail)
    with pytest.raises(KeyError):
        cli.main(["run", "--input", "x.csv", "--store", str(tmp_path)])


def test_status_takes_nothing_for_done_that_is_to_be_done_again(tmp_path) -> None:
    """A run with another model was killed while it embedded: what was clustered and assigned before is not of its vectors."""
    job = job_of(tmp_path)
    parts = pa.table({"partition_id": ["a", "b"], "value": [None, None], "rows": [3, 4], "chars": [9, 9], "digest": ["1", "2"]})
    job.store.create_table("partitions")
    job.store.replace("partitions", parts.cast(TABLES["partitions"].schema), stage="ingest", unit_fingerprint="0" * 32)

    def log(stage: str, status: str, partitions: str = "ab") -> None:
        for pid in partitions:
            job.record(stage, pid, "1" * 32, status, rows=5, seconds=1.0)
        job.flush()

    def counts() -> dict[str, tuple[int, int]]:
        return {stage: (found["done"], found["pending"]) for stage, found in status(job.store.uri)["stages"].items()}

    for stage in ("embed", "cluster", "assign"):
        log(stage, "done")
    assert counts() == {"embed": (2, 0), "cluster": (2, 0), "assign": (2, 0)}
    log("embed", "pending")
    log("embed", "done", "a")
    assert counts() == {"embed": (1, 1), "cluster": (0, 2), "assign": (0, 2)}
    log("embed", "done", "b")
    log("cluster", "done", "a")
    assert counts() == {"embed": (2, 0), "cluster": (1, 1), "assign": (0, 2)}


class Gone(io.StringIO):
    """A stream whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_reader_that_leaves_ends_no_job_and_hides_no_failure(tmp_path, monkeypatch) -> None:
    done = []

    def forget(*_: object, ui: Ui, **__: object) -> dict[str, object]:
        ui.log("stage", "half way")
        done.append(True)
        raise BrokenPipeError(32, "Broken pipe")  # an engine's

    monkeypatch.setattr("jobs.forget.forget", forget)
    monkeypatch.setattr("sys.stderr", Gone())
    ids = tmp_path / "ids.txt"
    ids.write_text("a\n")
    assert cli.main(["forget", "--ids", str(ids), "--store", str(tmp_path), "--json"]) == cli.FAILED
    assert done == [True]
    monkeypatch.setattr("sys.stdout", Gone())
    monkeypatch.setattr("jobs.topics.topics", lambda *_, **__: [])
    assert cli.main(["topics", "--store", str(tmp_path)]) == cli.DONE


def test_words_are_compared_with_vectors_of_their_own_model_alone() -> None:
    """Of vectors that came with the documents it is not known: said before anything is started."""
    given = load(values={"input": {"embedding_column": "v"}})
    with pytest.raises(RequestError, match="Take mmr or llm"):
        represent.check(given, parse({"words": ["mmr", "keybert"]}))
    represent.check(given, parse({"words": "mmr"}))
    represent.check(Config(), parse({"words": "keybert"}))


def test_given_vectors_are_of_the_model_that_was_named_and_else_like_no_other_stores(tmp_path) -> None:
    def of(store: str, column: str, *named: str) -> tuple[str, str]:
        job = job_of(tmp_path / store, f"input.embedding_column={column}", *named)
        return embed.space_of(job), embed.model_of(job)

    bge = "embedding.model=BAAI/bge-small-en-v1.5"
    assert of("berlin", "v", bge) == of("paris", "vector", bge), "whatever the column is called"
    assert of("berlin", "v", bge)[1] == "BAAI/bge-small-en-v1.5"
    assert of("berlin", "v") == of("berlin", "vector"), "a store's own are comparable"
    assert of("berlin", "v")[0] != of("paris", "v")[0]
    assert of("berlin", "v")[1] == "a model that was not named"
    default = "embedding.model=sentence-transformers/all-MiniLM-L6-v2"
    assert of("berlin", "v", default) == of("paris", "v", default)
    assert of("berlin", "v", default)[1] == "all-MiniLM-L6-v2"
