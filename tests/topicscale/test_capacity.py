"""Capacity plans: laws, limits, and the rates they rest on."""

from __future__ import annotations

import dataclasses
import json

import pytest

from jobs import cli
from jobs.plan import describe, plan, to_dict
from topicscale.capacity import UNITS, read_rates, write_rates
from topicscale.errors import RequestError


def seconds(stage: str, **changes: object) -> float:
    asked = {"documents": 10**9, "tokens": 60.0, "gpus": 64, "spark_cores": 512} | changes
    return {row.name: row.seconds for row in plan(**asked).stages}[stage]


@pytest.mark.parametrize("key", ["documents", "tokens"])
def test_a_larger_corpus_takes_no_less_of_anything(key) -> None:
    few, many = (to_dict(plan(**{"documents": 10**7, "tokens": 60.0, "gpus": 8, "spark_cores": 64} | {key: value})) for value in
                 ((10**7, 4 * 10**7) if key == "documents" else (60.0, 240.0)))  # fmt: skip
    for one, other in zip(few["stages"], many["stages"], strict=True):
        for number in ("seconds", "reads", "writes", "shuffles"):
            # more tokens make more partitions, of fewer documents, which are clustered faster
            assert other[number] >= one[number] * 0.99 or (key, one["name"]) == ("tokens", "cluster"), (one["name"], number)
    assert many["storage_bytes"] > few["storage_bytes"]


def test_twice_the_gpus_embed_and_cluster_in_half_the_time() -> None:
    for stage in ("embed", "cluster"):
        assert seconds(stage, gpus=128) == pytest.approx(seconds(stage) / 2, rel=0.02)
    assert seconds("ingest", gpus=128) == seconds("ingest")
    assert seconds("terms", spark_cores=1024) == pytest.approx(seconds("terms") / 2)


def test_gpus_wait_for_tokens_where_they_have_few_processors(tmp_path) -> None:
    rates = read_rates()
    write_rates(tmp_path / "rates.yaml", {"tokenize": dataclasses.replace(rates["tokenize"], value=rates["embed_gpu"].value / 4)})
    asked = {"documents": 10**9, "tokens": 60.0, "gpus": 64, "spark_cores": 512, "rates": str(tmp_path / "rates.yaml")}
    starved, fed = plan(**asked, ray_cpus=64), plan(**asked, ray_cpus=64 * 8)
    assert starved.stages[2].seconds == pytest.approx(4 * fed.stages[2].seconds)
    assert "tokens are made slower" in starved.stages[2].law


def test_the_stage_that_limits_is_named_with_what_to_change() -> None:
    found = plan(documents=10**9, tokens=60, gpus=64, spark_cores=512)
    assert found.limit.seconds == max(row.seconds for row in found.stages)
    assert found.advice[0].startswith(f"{found.limit.name} limits")
    assert plan(documents=10**9, tokens=60, gpus=64, spark_cores=1).limit.name in ("ingest", "terms")
    assert plan(documents=10**7, tokens=60, spark_cores=512, ray_cpus=4).limit.name == "embed"


def test_without_gpus_processors_embed() -> None:
    found = plan(documents=10**6, tokens=60, spark_cores=16)
    assert found.request.gpus == 0
    assert "embed" not in found.assumed
    assert "embed" in plan(documents=10**6, tokens=60, spark_cores=16, gpus=1).assumed


def test_what_is_assumed_is_said_of_its_stages() -> None:
    found = plan(documents=10**9, tokens=60, gpus=64, spark_cores=512)
    text = describe(found)
    for stage in found.stages:
        assert (f"\n~{stage.name} " in text) == (stage.name in found.assumed)
    assert "embed_gpu" in found.assumed["embed"]
    assert any("768" in name for name in plan(documents=10**6, tokens=60, spark_cores=16, dimensions=768).assumed["embed"])


def test_prices_add_up() -> None:
    found = plan(documents=10**8, tokens=60, gpus=8, spark_cores=64, gpu_hour=2.0, core_hour=0.05, gigabyte_month=0.02)
    ingest = next(row for row in found.stages if row.name == "ingest")
    assert ingest.cost == pytest.approx(ingest.seconds / 3600 * 64 * 0.05)
    assert found.cost == pytest.approx(sum(row.cost or 0.0 for row in found.stages))
    assert to_dict(found)["storage_cost_month"] == pytest.approx(found.storage / 1e9 * 0.02)
    assert plan(documents=10**8, tokens=60, gpus=8, spark_cores=64).cost is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--documents", "-1"], "documents must be at least 1. Got -1"),
        (["--documents", "many"], "--documents must be a whole number"),
        (["--documents", "1.5"], "--documents must be a whole number"),
        (["--documents", "inf"], "--documents must be a whole number"),
        (["--tokens", "0"], "tokens must be at least 1"),
        (["--tokens", "nan"], "tokens must be at least 1"),
        (["--gpus", "-2"], "gpus must be at least 0"),
        (["--spark-cores", "0"], "spark_cores at least 1"),
        (["--gpus", "8", "--ray-cpus", "4"], "ray_cpus must be at least 1, and one for each GPU"),
        (["--model-dim", "0"], "dimensions must be at least 1"),
        (["--cost-gpu-hour", "-1"], "gpu_hour must be at least 0"),
        (["--rates", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_wrong_request_is_refused(options, said, capsys) -> None:
    asked = {"--documents": "1e6", "--tokens": "60", "--spark-cores": "8"} | dict(zip(options[::2], options[1::2], strict=True))
    assert cli.main(["plan", *(f"{key}={value}" for key, value in asked.items())]) == cli.BAD_REQUEST
    assert said in capsys.readouterr().err


def test_a_plan_as_json_holds_every_stage(capsys) -> None:
    assert cli.main(["plan", "--documents", "1e9", "--tokens", "60", "--gpus", "64", "--spark-cores", "512", "--labels", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    named = [row["name"] for row in found["stages"]]
    assert {"ingest", "embed", "cluster", "merge", "refine", "terms", "label"} <= set(named)
    assert found["limit"] in named
    assert found["storage_bytes"] == pytest.approx(sum(found["tables"].values()))


def test_packaged_rates_say_what_and_where() -> None:
    rates = read_rates()
    assert set(rates) == set(UNITS)
    for name, rate in rates.items():
        assert rate.machine, name
        assert rate.source, name
    assert not rates["embed_gpu"].measured


def test_rates_are_read_as_they_were_written(tmp_path) -> None:
    rates = read_rates()
    write_rates(tmp_path / "all.yaml", rates)
    assert read_rates(tmp_path / "all.yaml") == rates
    faster = dataclasses.replace(rates["ingest"], value=rates["ingest"].value * 10)
    write_rates(tmp_path / "one.yaml", {"ingest": faster})
    assert read_rates(tmp_path / "one.yaml") == rates | {"ingest": faster}
    asked = {"documents": 10**9, "tokens": 60.0, "gpus": 64, "spark_cores": 512}
    assert seconds("ingest", rates=str(tmp_path / "one.yaml"), **asked) == pytest.approx(seconds("ingest", **asked) / 10)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1\n", "must be a mapping"),
        ("ingest: 3\n", "must be a mapping"),
        ("ingst: {value: 1.0, unit: s}\n", "Did you mean 'ingest'"),
        ("start: {value: 1.0, unit: min}\n", "the unit of start must be 's'"),
        ("start: {value: -1.0, unit: s}\n", "must be a positive number. Got -1.0"),
        ("start: {value: .nan, unit: s}\n", "must be a positive number"),
        ("start: {value: true, unit: s}\n", "must be a positive number"),
        ("start: [\n", "cannot be read"),
    ],
)
def test_wrong_rates_are_refused(text, said, tmp_path) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"rates\.yaml") as caught:
        read_rates(path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--documents", "100"], "--documents must be at least 5,000"),
        (["--output", "nowhere/rates.yaml"], "--output must be a file in a folder that exists"),
        (["--spark", "spark://host:7077"], "--spark-cores must say"),
        (["--set", "input.embedding_column=vector"], "must embed"),
        (["--input", "nowhere.csv"], "nowhere.csv"),
        (["--input", "tickets.csv", "--documents", "50000"], "an input is taken whole"),
    ],
)
def test_a_wrong_benchmark_is_refused_before_anything_starts(options, said, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["benchmark", "--output", "rates.yaml", *options]) == cli.BAD_REQUEST
    assert said in capsys.readouterr().err
    assert not (tmp_path / "rates.yaml").exists()
