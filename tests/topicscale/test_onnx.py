"""Exported transformers as files: weights beside a model, and several workers that make one file."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from topicscale.models import resolve
from topicscale.onnx import Session, export, exported, gather, quantise, weights_of

pytestmark = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="the extra onnx is not installed")

IDS = np.array([[101, 7592, 2088, 102], [101, 3514, 102, 0]], np.int64)
MASK = (IDS > 0).astype(np.int64)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged transformer, exported."""
    from transformers import AutoModel

    file = tmp_path_factory.mktemp("plain") / "model.onnx"
    export(AutoModel.from_pretrained(str(resolve("all-MiniLM-L6-v2").path)).float().eval(), file)
    return file


def tokens(file: Path) -> np.ndarray:
    return Session(file, threads=1).run(IDS, MASK)


@pytest.fixture
def large(plain: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export of more than 2 GiB leaves a file for each tensor: so does this one, of any size."""
    import onnx

    def as_large(model: object, to: Path, **_: object) -> None:
        onnx.save(onnx.load(str(plain)), str(to), save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
        gather(to)

    monkeypatch.setattr("topicscale.onnx.export", as_large)
    return plain


@pytest.mark.parametrize("int8", [False, True])
def test_weights_beside_a_model_go_where_it_goes(large: Path, tmp_path: Path, int8: bool) -> None:
    file = exported(None, "abc", int8=int8, cache=tmp_path)
    # two for each model, of which int8 leaves the one that it is made from
    assert len(list(tmp_path.iterdir())) == (4 if int8 else 2)
    found, expected = tokens(file).ravel(), tokens(large).ravel()
    assert found @ expected / np.linalg.norm(found) / np.linalg.norm(expected) > (0.97 if int8 else 0.999999)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in (file, weights_of(file)):
        shutil.move(path, elsewhere)
    assert np.isfinite(tokens(elsewhere / file.name)).all()


def test_several_workers_quantise_one_file_at_once(plain: Path, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from topicscale.onnx import quantise; quantise(Path(sys.argv[1]), Path(sys.argv[2]))"
    made = [tmp_path / name / "model.onnx" for name in "ab"]
    for file in made:
        file.parent.mkdir()
    workers = [subprocess.Popen([sys.executable, "-c", code, str(plain), str(file)]) for file in made]
    assert [worker.wait(300) for worker in workers] == [0, 0]
    assert np.array_equal(tokens(made[0]), tokens(made[1]))
    assert [path.name for path in plain.parent.iterdir()] == ["model.onnx"]


def test_what_is_quantised_is_left_as_it_is(plain: Path, tmp_path: Path) -> None:
    before = plain.read_bytes()
    quantise(plain, tmp_path / "small.onnx")
    assert plain.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
    assert (tmp_path / "small.onnx").stat().st_size < 0.7 * len(before)
