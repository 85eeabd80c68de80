"""The training loop: stopped and gone on it is the same training, in one process or in two."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from topicscale.config import EmbeddingConfig
from topicscale.embedding import Embedder
from topicscale.errors import ConfigError, InputError, ResourceError, StoreError
from topicscale.finetune import base as bases
from topicscale.finetune.batches import Batches, dataset, sizes_of, steps_per_pass
from topicscale.finetune.recipes import recipe
from topicscale.finetune.training import Part, Training, _arguments, check, total_steps, train
from topicscale.models import PACKAGED

pytest.importorskip("datasets")
MINILM = next(iter(PACKAGED))
TEXTS = [
    f"{what} {number}"
    for number in range(6)
    for what in ("a cat sleeps on the sofa", "the card was not delivered", "rain falls all day", "a bank")
]


class Stop(Exception):
    """What a killed worker is to the loop."""


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("examples")
    others = TEXTS[5:] + TEXTS[:5]
    labels: dict[str, list[Any]] = {"cosine": [i % 5 / 4 for i in range(24)], "softmax": [i % 3 for i in range(24)]}
    for name, label in labels.items():
        table = pa.table({"sentence1": TEXTS, "sentence2": others, "label": label})
        write_deltalake(str(folder / name), table)
        write_deltalake(str(folder / name), table.slice(0, 1), mode="append")  # a later version, not to be seen
    near = [[(i + far) % 24 for far in (0, 5, 5, 1, 10, 6)] for i in range(24)]  # the fifth after each, and the next, are near
    write_deltalake(str(folder / "clnn"), pa.table({"anchor": TEXTS, "positive": others, "label": near}))
    return {name: str(folder / name) for name in (*labels, "clnn")}


def training(tables: dict[str, str], *recipes: str, **settings: Any) -> Training:
    parts = tuple(Part(name, {}, tables[name], 0) for name in recipes)
    return Training(
        base=MINILM, parts=parts, **{"epochs": 2, "batch_size": 6, "checkpoint_steps": 2, "layers": 1, "learning_rate": 1e-3, **settings}
    )


def run(what: Training, work: Path, stop: int | None = None) -> list[list[float]]:
    seen: list[tuple[int, int, float | None]] = []

    def report(step: int, steps: int, loss: float | None) -> None:
        seen.append((step, steps, loss))
        if step == stop:
            raise Stop

    try:
        train(what, work, device="cpu", threads=1, report=report)
    except Stop:
        return []
    losses: list[list[float]] = json.loads((work / "losses.json").read_text())
    reported = [[step, loss] for step, _, loss in seen if loss is not None]
    assert reported == losses[len(losses) - len(reported) :]
    return losses


def weights(work: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(work / "model" / "model.safetensors")


@pytest.mark.parametrize("recipes", [("cosine",), ("softmax",), ("cosine", "softmax")])
def test_stopped_and_gone_on_it_is_the_same(tables, tmp_path: Path, recipes):
    what = training(tables, *recipes)
    whole = run(what, tmp_path / "whole")
    assert [step for step, _ in whole] == list(range(1, 8 * len(recipes) + 1))
    for stop in (3, 4, 7):  # in a pass, at its end, and in the next
        assert run(what, tmp_path / "stopped", stop=stop) == []
    assert run(what, tmp_path / "stopped") == whole
    for name, value in weights(tmp_path / "whole").items():
        np.testing.assert_array_equal(value, weights(tmp_path / "stopped")[name])


def test_what_is_left_behind(tables, tmp_path: Path):
    what = training(tables, "cosine")
    run(what, tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["checkpoint-6", "checkpoint-8"]
    files = {path.name for path in (tmp_path / "checkpoints" / "checkpoint-8").iterdir()}
    assert {"complete", "weights.safetensors"} <= files
    assert "training_args.bin" not in files
    assert not list((tmp_path / "model").rglob("*.bin"))
    assert not (tmp_path / "model" / "README.md").exists()
    vectors = Embedder(EmbeddingConfig(model=str(tmp_path / "model"), dtype="float32"), threads=1).encode(TEXTS).vectors
    assert vectors.shape == (24, 384)
    before = (tmp_path / "losses.json").stat().st_mtime_ns
    train(what, tmp_path, device="cpu", threads=1)  # done: nothing is done
    assert (tmp_path / "losses.json").stat().st_mtime_ns == before
    # killed after the last step and before the model was written; what was half written is no checkpoint
    losses = json.loads((tmp_path / "losses.json").read_text())
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "losses.json").unlink()
    (tmp_path / "checkpoints" / "checkpoint-9").mkdir()
    assert run(what, tmp_path) == losses
    again = Embedder(EmbeddingConfig(model=str(tmp_path / "model"), dtype="float32"), threads=1).encode(TEXTS).vectors
    np.testing.assert_array_equal(vectors, again)
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(StoreError, match="another training"):
        train(training(tables, "softmax"), tmp_path, device="cpu", threads=1)


def test_learns(tables, tmp_path: Path):
    losses = [loss for _, loss in run(training(tables, "cosine", epochs=8, freeze=0, dropout=0.0), tmp_path)]
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])


def test_low_rank_and_bfloat16(tables, tmp_path: Path):
    pytest.importorskip("peft")
    what = training(tables, "cosine", precision="bfloat16", dropout=0.0, lora={"r": 4}, epochs=1)
    plain = run(training(tables, "cosine", dropout=0.0, lora={"r": 4}, epochs=1), tmp_path / "float32")
    assert run(what, tmp_path / "stopped", stop=3) == []
    half = run(what, tmp_path / "stopped")
    assert half != plain
    np.testing.assert_allclose(half, plain, rtol=0.02)
    size = (tmp_path / "stopped" / "checkpoints" / "checkpoint-4" / "weights.safetensors").stat().st_size
    assert size < (tmp_path / "stopped" / "model" / "model.safetensors").stat().st_size / 50  # what is frozen is not kept
    assert {value.dtype for value in weights(tmp_path / "stopped").values()} == {np.dtype("float32")}
    assert not [name for name in weights(tmp_path / "stopped") if "lora" in name]


def test_sums_of_batches_are_one_batch(tables, tmp_path: Path):
    one = run(training(tables, "cosine", batch_size=12, dropout=0.0, max_steps=2), tmp_path / "one")
    two = run(training(tables, "cosine", batch_size=6, accumulate=2, dropout=0.0, max_steps=2), tmp_path / "two")
    np.testing.assert_allclose(one, two, rtol=1e-4)


def test_a_prompt_is_trained_behind(tables, tmp_path: Path):
    prefixed = pa.table(
        {"sentence1": [f"query: {text}" for text in TEXTS], "sentence2": [f"query: {text}" for text in TEXTS[5:] + TEXTS[:5]]}
    )
    write_deltalake(str(tmp_path / "cosine"), prefixed.append_column("label", pa.array([i % 5 / 4 for i in range(24)])))
    write_deltalake(str(tmp_path / "softmax"), prefixed.append_column("label", pa.array([i % 3 for i in range(24)])))
    there = {name: str(tmp_path / name) for name in ("cosine", "softmax")}
    for recipes in (["cosine"], ["cosine", "softmax"]):
        how = {"max_steps": 3, "checkpoint_steps": 9}
        behind = run(training(tables, *recipes, prompt="query: ", **how), tmp_path / f"prompt-{len(recipes)}")
        assert behind == run(training(there, *recipes, **how), tmp_path / f"plain-{len(recipes)}")
        assert behind != run(training(tables, *recipes, **how), tmp_path / f"bare-{len(recipes)}")


def test_what_a_loss_holds_is_trained_with_dropout(tables, tmp_path: Path):
    from topicscale.finetune.trainer import Trainer

    what = training(tables, "cosine", max_steps=1)
    model, ct, data = bases.build(bases.inspect(MINILM), layers=1), recipe("ct"), dataset(tables["cosine"], 0)
    loss = ct.loss(model, ct.with_defaults({}), base=MINILM, similarity="cosine", workers=1)
    args = _arguments(what, tmp_path, 1, workers=1, device="cpu")
    Trainer(model, args, parts={"ct": data}, losses={"ct": loss}, unique=[False], sizes=[6], report=lambda *_: None).train()
    assert all(part.training for part in loss.model1.modules())


def test_no_text_is_left_on_the_machine(tables, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = dataset(tables["cosine"], 0)
    assert not list(tmp_path.iterdir())  # nor would be after a kill
    assert data["sentence1"] == TEXTS


@pytest.mark.parametrize(("workers", "deepspeed"), [(16, None), (2, {"zero_optimization": {"stage": 1}})])
def test_another_number_of_workers_goes_on_with_the_same_batches_or_not_at_all(workers, deepspeed, tables, tmp_path: Path, monkeypatch):
    what = training(tables, "cosine", batch_size=32, epochs=4)  # more than the 24 examples
    assert run(what, tmp_path, stop=3) == []
    monkeypatch.setenv("WORLD_SIZE", str(workers))
    if deepspeed is not None:
        pytest.importorskip("deepspeed")
    with pytest.raises(ConfigError, match=rf"finetune\.workers must be 1, as when this training was begun.*Got {workers} instead"):
        train(replace(what, deepspeed=deepspeed), tmp_path, device="cpu", threads=1)
    monkeypatch.delenv("WORLD_SIZE")
    assert [step for step, _ in run(what, tmp_path)] == [1, 2, 3, 4]


def _worker(rank: int, workers: int, port: int, what: Training, work: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(workers), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    from torch import distributed

    distributed.init_process_group("gloo", rank=rank, world_size=workers)
    seen: list[list[float]] = []
    train(what, work, device="cpu", threads=1, report=lambda step, _, loss: seen.append([step, loss]) if loss is not None else None)
    (work / f"seen-{rank}.json").write_text(json.dumps(seen))
    distributed.destroy_process_group()


def test_two_workers_are_one(tables, tmp_path: Path):
    from multiprocessing import set_forkserver_preload

    from torch.multiprocessing import start_processes

    # softmax: the classifier is no part of the model, whose gradients alone DDP averages; clnn: each worker's anchors meet all texts
    what = training(tables, "cosine", "softmax", "clnn", dropout=0.0)
    one = run(what, tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    set_forkserver_preload(["topicscale.finetune.trainer"])  # torch is imported once for both
    start_processes(_worker, (2, port, what, tmp_path / "two"), nprocs=2, start_method="forkserver")
    two = json.loads((tmp_path / "two" / "losses.json").read_text())
    np.testing.assert_allclose(one, two, atol=1e-4)
    assert [json.loads((tmp_path / "two" / f"seen-{rank}.json").read_text()) for rank in (0, 1)] == [two, two]
    for name, value in weights(tmp_path / "one").items():
        np.testing.assert_allclose(value, weights(tmp_path / "two")[name], atol=1e-3)


def test_steps(tables):
    assert steps_per_pass([24], [6]) == 4
    assert steps_per_pass([25, 3], [6, 3]) == 5  # the 25th waits for another pass; 3 are one batch
    assert steps_per_pass([24, 12], [6, 6], accumulate=4) == 2
    assert total_steps(training(tables, "cosine", epochs=1), [30], [4]) == 7
    assert total_steps(training(tables, "cosine", epochs=1.5), [30]) == 8
    assert total_steps(training(tables, "cosine", max_steps=3), [30]) == 3


def batches_of(parts: Sequence[Any], unique: Sequence[bool], size: int, *, rank: int = 0, workers: int = 1) -> Batches:
    sizes = sizes_of(parts, unique, size, seed=1, workers=workers)
    return Batches(parts, unique, sizes, seed=1, rank=rank, workers=workers)


def test_every_worker_takes_its_slice_of_the_same_batches():
    parts = [range(100), range(20), range(3)]
    whole = batches_of(parts, [False] * 3, 8)
    slices = [batches_of(parts, [False] * 3, 8, rank=rank, workers=2) for rank in (0, 1)]
    for number in (0, 1):
        for one in (whole, *slices):
            one.set_epoch(number)
        batches = list(whole)
        assert len(batches) == len(whole) == 12 + 2 + 1
        assert Counter(len(batch) for batch in batches) == {8: 14, 3: 1}
        large = [batch for batch in batches if len(batch) == 8]
        assert [a + b for a, b in zip(*slices, strict=True) if len(a) == 4] == large
        taken = [i for batch in batches for i in batch]
        assert len(set(taken)) == len(taken) == 96 + 16 + 3
        assert all(max(batch) < 100 or (min(batch) >= 100 and max(batch) < 120) or min(batch) >= 120 for batch in batches)
    first, second = (list(whole), whole.set_epoch(0), list(whole))[::2]
    assert first != second
    assert list(whole) == second


def test_no_text_twice_in_a_batch():
    from datasets import Dataset

    anchors = [f"a{i % 12}" for i in range(48)]
    data = Dataset.from_dict({"anchor": anchors, "positive": [f"p{i}" for i in range(48)]})
    batches = batches_of([data], [True], 8)
    for number in range(3):
        batches.set_epoch(number)
        found = list(batches)
        assert len(found) == len(batches) == 6
        assert all(len({anchors[i] for i in batch}) == 8 for batch in found)
        assert found == list(batches)
    # where fewer go together than a batch is to have, a pass has more batches, and leaves nothing out
    canned = Dataset.from_dict({"anchor": [f"a{i}" for i in range(300)], "positive": [f"p{i % 10}" for i in range(300)]})
    assert sizes_of([canned], [True], 64, seed=1, workers=1) == [10]
    together = batches_of([canned], [True], 64)
    assert len({i for batch in together for i in batch}) == 10 * len(together) == 300
    # however many there are: ten answers to 5,000 questions go into batches of ten as well
    many = Dataset.from_dict({"anchor": [f"a{i}" for i in range(5000)], "positive": [f"p{i % 10}" for i in range(5000)]})
    assert sizes_of([many], [True], 64, seed=1, workers=1) == [10]
    # nearly all have one and the same answer
    same = Dataset.from_dict({"anchor": [f"a{i}" for i in range(2000)], "positive": [f"p{max(0, i - 1987)}" for i in range(2000)]})
    assert 2 <= sizes_of([same], [True], 64, seed=1, workers=1)[0] <= 13
    few = Dataset.from_dict({"anchor": [f"a{i % 49}" for i in range(50)], "positive": [f"b{i}" for i in range(50)]})
    small = batches_of([few], [True], 64)
    for number in range(5):
        small.set_epoch(number)
        assert [len(batch) for batch in small] == [49]
    with pytest.raises(InputError, match="too many are alike"):
        batches_of([Dataset.from_dict({"anchor": ["a"] * 9, "positive": list("bcdefghij")})], [True], 4)
    with pytest.raises(InputError, match="1 examples for 2 workers"):
        batches_of([range(1)], [False], 4, workers=2)


def test_refusals(tables):
    with pytest.raises(ConfigError, match="multiple of the 4 workers"):
        check(training(tables, "cosine"), workers=4, device="cpu")
    with pytest.raises(ResourceError, match="float16 needs a GPU"):
        check(training(tables, "cosine", precision="float16"), workers=1, device="cpu")
    with pytest.raises(ConfigError, match="weights of its own"):
        check(training(tables, "softmax", deepspeed={"zero_optimization": {"stage": 2}}), workers=1, device="cpu")
    cached = Training(base=MINILM, parts=(Part("cached-mnr", {}, "", 0),), deepspeed={"zero_optimization": {"stage": 2}})
    with pytest.raises(ConfigError, match="deepspeed-zero1"):
        check(cached, workers=1, device="cpu")
    with pytest.raises(ConfigError, match="Did you mean 'cosine'"):
        check(Training(base=MINILM, parts=(Part("cosin", {}, "", 0),)), workers=1, device="cpu")
