"""Exported models: each format loads by itself, and what it costs and loses is told."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from jobs.portable import BUILT_IN, describe, export
from topicscale import portable
from topicscale.config import EmbeddingConfig
from topicscale.embedding import Embedder
from topicscale.errors import InputError, MissingDependency, ModelError, RequestError
from topicscale.models import resolve

TEXTS = list(BUILT_IN[:16])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packaged model in every format, written once."""
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("the extra onnx is not installed")
    return portable.write(resolve("all-MiniLM-L6-v2").path, tmp_path_factory.mktemp("portable") / "out", list(portable.FORMATS))


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return Embedder(EmbeddingConfig(dtype="float32"), threads=1).encode(TEXTS).vectors


@pytest.mark.parametrize(("name", "dtype", "cosine"), [("fp32", "float32", 0.999999), ("bf16", "bfloat16", 0.999)])
def test_safetensors_load_as_any_model_does(made, expected, name: str, dtype: str, cosine: float):
    folder = made[name]
    vectors = Embedder(EmbeddingConfig(model=str(folder), dtype=dtype), threads=1).encode(TEXTS).vectors
    assert (vectors * expected).sum(1).min() > cosine
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


def test_bf16_takes_half_the_space(made):
    sizes = [(made[name] / "model.safetensors").stat().st_size for name in ("fp32", "bf16")]
    assert sizes[1] / sizes[0] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("name", "cosine"), [("onnx", 0.99999), ("onnx-int8", 0.97)])
def test_onnx_loads_from_its_folder_alone(made, expected, name: str, cosine: float):
    import onnxruntime
    from tokenizers import Tokenizer

    folder, file = made[name], portable.FORMATS[name][1]
    assert not list(folder.glob("*.safetensors"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(TEXTS)
    ids, mask = (np.array([getattr(e, key) for e in encodings], np.int64) for key in ("ids", "attention_mask"))
    session = onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
    # the names by which optimum knows them
    assert [i.name for i in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [o.name for o in session.get_outputs()] == ["last_hidden_state"]
    tokens = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode"] == "mean"
    pooled = (tokens * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    assert (pooled * expected).sum(1).min() > cosine


def test_what_each_format_costs_and_loses(made, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(portable, "CALLS", 2)
    monkeypatch.setattr(portable, "LEAST", 1)
    model = resolve("all-MiniLM-L6-v2").path
    embedder = Embedder(EmbeddingConfig(backend="torch", dtype="float32"), threads=1)
    encoders = {name: portable.encoder(name, folder, model, threads=1) for name, folder in made.items()}
    rows = portable.measure(made, encoders, lambda texts: embedder.encode(texts).vectors, BUILT_IN)
    found = {row.format: row for row in rows}
    assert list(found) == list(portable.FORMATS)
    assert found["fp32"].bytes > found["bf16"].bytes
    assert found["onnx"].bytes > found["onnx-int8"].bytes
    assert found["fp32"].cosine_min > 0.999999 > 0.9999 > found["onnx-int8"].cosine_mean > 0.97
    for row in rows:
        assert row.cosine_min <= row.cosine_mean
        assert all(0 < row.p50[batch] <= row.p99[batch] for batch in portable.BATCHES)
        assert row.p50[1] < row.p50[32]
        assert row.documents_per_second > 0


def test_the_job_writes_measures_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(portable, "CALLS", 1)
    monkeypatch.setattr(portable, "LEAST", 1)
    scored = tmp_path / "scored.csv"
    rows = [f'"{a}","{b}",{i}' for i, (a, b) in enumerate(zip(BUILT_IN, BUILT_IN[::-1], strict=True))]
    scored.write_text("\n".join(["sentence1,sentence2,score", *rows]))
    (tmp_path / "out").mkdir()  # an empty folder will do
    found = export("all-MiniLM-L6-v2", str(tmp_path / "out"), formats=["fp32", "bf16"], tasks=[f"sts={scored}"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bf16", "fp32"]
    losses = [row["tasks"]["sts.spearman"]["loss"] for row in found["formats"]]
    assert losses[0] == pytest.approx(0, abs=1e-3)
    assert abs(losses[1]) < 0.1
    lines = describe(found).splitlines()
    assert lines[0].split()[:2] == ["format", "MB"]
    assert [line.split()[0] for line in lines[1:3]] == ["fp32", "bf16"]
    assert "built-in sentences" in lines[-1]


def test_what_cannot_be_exported_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"

    def refused(error: type[Exception], said: str, name: str = "all-MiniLM-L6-v2", **options: object) -> None:
        with pytest.raises(error, match=said):
            export(name, str(out), **{"formats": ["fp32"], **options})
        assert not out.exists()

    refused(RequestError, "fp32, bf16, onnx, onnx-int8. Got 'gguf'", formats=["gguf"])
    refused(RequestError, "once", formats=["fp32", "fp32"])
    refused(RequestError, "none", formats=[])
    refused(ModelError, "no/such", "./no/such/model")
    refused(InputError, r"nowhere\.txt", reference=["nowhere.txt"])
    few = tmp_path / "few.csv"
    few.write_text("text\none\ntwo\n")
    refused(RequestError, "at least 32 distinct texts. Got 2", reference=[str(few)])
    refused(InputError, "body", reference=[f"{few}:body"])
    refused(RequestError, "Did you mean 'sts'", tasks=["st=few.csv"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"topicscale\[onnx\]"):
        portable.check_formats(["onnx"])
    monkeypatch.undo()
    out.mkdir()
    (out / "letter.txt").write_text("mine")
    with pytest.raises(RequestError, match="not empty"):
        export("all-MiniLM-L6-v2", str(out), formats=["fp32"])
