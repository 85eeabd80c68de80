"""What is wrong with a model is said before anything is started."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from topicscale.config import EmbeddingConfig
from topicscale.errors import ModelError
from topicscale.models import check, embedding_space, positions, resolve, told


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "model"
    shutil.copytree(resolve("all-MiniLM-L6-v2").path, target)
    return target


def test_packaged_model_by_both_names_and_by_folder(folder: Path):
    model = resolve("all-MiniLM-L6-v2")
    assert resolve("sentence-transformers/all-MiniLM-L6-v2").revision == model.revision == resolve(str(folder)).revision


def test_other_weights_are_another_revision(folder: Path):
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert resolve(str(folder)).revision != resolve("all-MiniLM-L6-v2").revision


def test_checking_loads_no_torch():
    code = "import sys; from topicscale.models import check; from topicscale.config import EmbeddingConfig; check(EmbeddingConfig()); "
    subprocess.run([sys.executable, "-c", code + "assert not {'torch', 'transformers'} & set(sys.modules)"], check=True, timeout=120)


@pytest.mark.parametrize(("missing", "said"), [("config.json", "no config.json"), ("model.safetensors", "no weights")])
def test_missing_file_is_named(folder: Path, missing: str, said: str):
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=said):
        resolve(str(folder))


def test_code_of_its_own_is_refused(folder: Path):
    settings = folder / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"auto_map": {"AutoModel": "own.Model"}}))
    with pytest.raises(ModelError, match="auto_map"):
        resolve(str(folder))


def test_foreign_module_is_refused(folder: Path):
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "own.Transformer"}]))
    with pytest.raises(ModelError, match=r"own\.Transformer"):
        resolve(str(folder))


def test_unknown_folder():
    with pytest.raises(ModelError, match="no model folder"):
        resolve("./not/there")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (EmbeddingConfig(dtype="int8"), "backend=onnx"),
        (EmbeddingConfig(backend="onnx", dtype="bfloat16"), "float32 or int8"),
        (EmbeddingConfig(max_tokens=1000), "512"),
    ],
)
def test_impossible_settings(config: EmbeddingConfig, said: str):
    with pytest.raises(ModelError, match=said):
        check(config)


def test_space_depends_on_what_changes_vectors():
    plain = embedding_space(EmbeddingConfig())
    assert plain == embedding_space(EmbeddingConfig(dtype="float32")) == embedding_space(EmbeddingConfig(batch_tokens=512))
    others = [EmbeddingConfig(max_tokens=64), EmbeddingConfig(prompt="query: "), EmbeddingConfig(backend="onnx", dtype="int8")]
    assert len({plain, *map(embedding_space, others)}) == 4


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local cache of the hub, which cannot be reached, with one model in it; returns its snapshot."""
    repository = tmp_path / "hub" / "models--sentence-transformers--paraphrase-MiniLM-L3-v2"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots").mkdir()
    shutil.move(folder, repository / "snapshots" / "abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return repository / "snapshots" / "abc"


def test_a_short_name_is_sentence_transformers_own(hub: Path):
    assert resolve("paraphrase-MiniLM-L3-v2").path == resolve("sentence-transformers/paraphrase-MiniLM-L3-v2").path == hub
    with pytest.raises(ModelError, match="'paraphrase-MiniLM-L99-v2' is no folder, is not in the local cache"):
        resolve("paraphrase-MiniLM-L99-v2")


def test_what_may_be_a_part_of_a_model_is_asked_of_the_hub(hub: Path, monkeypatch: pytest.MonkeyPatch):
    """Without modules.json a model of sentence-transformers would be pooled otherwise: transformers alone fetches it so."""
    asked = []

    def fetch(name: str, **options: object) -> str:
        if options.get("local_files_only"):
            return str(hub)
        asked.append(name)
        (hub / "modules.json").write_bytes(modules)
        return str(hub)

    modules = (hub / "modules.json").read_bytes()
    (hub / "modules.json").unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert resolve("BAAI/some-model").path == hub
    assert asked == ["BAAI/some-model"]
    assert resolve("BAAI/some-model").path == hub
    assert asked == ["BAAI/some-model"], "it is whole now"


def test_what_changes_no_vector_changes_no_revision(folder: Path):
    """One site's cache holds what sentence-transformers fetched, another's the whole repository."""
    whole = resolve(str(folder)).revision
    (folder / "data_config.json").unlink(missing_ok=True)
    (folder / "unigram.json").write_text("{}")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    assert resolve(str(folder)).revision == whole
    for changed in ("1_Pooling/config.json", "tokenizer.json"):
        with (folder / changed).open("a") as file:
            file.write(" ")
        assert resolve(str(folder)).revision != whole
        whole = resolve(str(folder)).revision


def test_tokens_up_to_the_positions_are_taken_and_positions_are_counted_as_the_model_does(folder: Path):
    from topicscale.embedding import Embedder

    text = " ".join(f"word{i}" for i in range(400))
    short, long = (Embedder(EmbeddingConfig(max_tokens=tokens), threads=1) for tokens in (None, 512))
    assert (short.max_tokens, long.max_tokens) == (256, 512)
    assert float(short.encode([text]).vectors[0] @ long.encode([text]).vectors[0]) < 0.9999
    assert positions({"model_type": "xlm-roberta", "max_position_embeddings": 514}) == 512
    assert positions({"model_type": "t5"}) is None


def test_a_name_is_told_and_no_path(folder: Path):
    assert told("sentence-transformers/all-MiniLM-L6-v2") == "all-MiniLM-L6-v2"
    assert told("BAAI/bge-small-en-v1.5") == "BAAI/bge-small-en-v1.5"
    assert (told(str(folder)), told("~/private/mine"), told("./mine")) == ("model", "mine", "mine")
