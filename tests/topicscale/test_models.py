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
from topicscale.models import check, embedding_space, resolve


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
