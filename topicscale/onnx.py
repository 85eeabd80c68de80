"""ONNX Runtime as the backend of the transformer: for processors without bfloat16, where int8 products are the fast ones.

The transformer alone is exported. Pooling and whatever follows it stay the model's own modules, so that every pooling
mode is right without a second implementation of it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from topicscale.config import cache_folder
from topicscale.errors import MissingDependency, ModelError

OPSET = 17
"""Export version; part of the cached file's name."""


class Session:
    """An exported transformer, loaded.

    Parameters
    ----------
    file : Path
        What :func:`export` or :func:`quantise` wrote.
    threads : int

    Raises
    ------
    MissingDependency
        onnxruntime is not installed.
    """

    def __init__(self, file: Path, *, threads: int) -> None:
        check()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # spinning threads would take the processors of the tokeniser and of other workers
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return token embeddings (n, length, d) of token ids and their mask, both (n, length)."""
        result: npt.NDArray[np.float32] = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return result


def check(purpose: str = "embedding.backend=onnx") -> None:
    """Raise MissingDependency where onnx or onnxruntime is not installed."""
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(package, "onnx", purpose)


def exported(model: Any, revision: str, *, int8: bool, cache: Path | None = None) -> Path:
    """Return the file of an exported transformer, which is made once a machine.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        In float32, on the CPU.
    revision : str
        Digest of the model: names the file.
    int8 : bool
        Quantise the weights to 8 bits, activations on the fly.
    cache : Path, optional
        Folder of exported files; the user's cache folder by default.

    Raises
    ------
    MissingDependency
        onnx or onnxruntime is not installed.
    ModelError
        The model cannot be exported.
    """
    check()
    folder = cache or cache_folder("onnx")
    plain = _cached(folder / f"{revision}-{OPSET}.onnx", lambda to: export(model, to))
    return _cached(folder / f"{revision}-{OPSET}-int8.onnx", lambda to: quantise(plain, to)) if int8 else plain


def _cached(file: Path, make: Any) -> Path:
    """Return ``file``, made by ``make(path)`` where it is missing. The last rename is atomic: others see all of it or nothing."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            unfinished = Path(folder) / file.name
            make(unfinished)
            if weights_of(unfinished).exists():
                os.replace(weights_of(unfinished), weights_of(file))
            os.replace(unfinished, file)
    return file


def weights_of(file: Path) -> Path:
    """Return where the weights of an exported transformer are, if its file of at most 2 GiB does not hold them."""
    return file.with_name(f"{file.name}.data")


def export(model: Any, to: Path, *, output: str = "token_embeddings") -> None:
    """Write a transformer's forward pass, from ``input_ids`` and ``attention_mask`` (int64) to ``output`` (n, length, d).

    Parameters
    ----------
    to : Path
        In a folder where nothing else is: weights of more than 2 GiB go into a file of their own beside it (:func:`weights_of`).

    Raises
    ------
    ModelError
        The model cannot be exported.
    """
    import torch

    class Tokens(torch.nn.Module):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).last_hidden_state

    # lengths and masks of their own, so that nothing of the example is traced as a constant
    ids, mask = torch.ones((2, 7), dtype=torch.int64), torch.ones((2, 7), dtype=torch.int64)
    mask[1, 5:] = 0
    axes = {0: "texts", 1: "length"}
    attention = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")  # shortcuts for masks without padding cannot be traced
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's, of branches on shapes that every text takes alike
            torch.onnx.export(
                Tokens().eval(),
                (ids, mask),
                str(to),
                input_names=["input_ids", "attention_mask"],
                output_names=[output],
                dynamic_axes={"input_ids": axes, "attention_mask": axes, output: axes},
                opset_version=OPSET,
                dynamo=False,
            )
    except Exception as error:
        raise ModelError(f"The model cannot be exported to ONNX ({type(error).__name__}: {error}). Use embedding.backend=torch.") from error
    finally:
        model.set_attn_implementation(attention)
    gather(to)


def gather(file: Path) -> None:
    """Bring the weights that were written beside a model, a file for each tensor, into one: see :func:`weights_of`."""
    if not (parts := [part for part in file.parent.iterdir() if part != file]):
        return
    import onnx

    model = onnx.load(str(file))
    for part in (file, *parts):
        part.unlink()
    onnx.save(model, str(file), save_as_external_data=True, location=weights_of(file).name)


def quantise(plain: Path, to: Path) -> None:
    """Write an exported transformer with weights of 8 bits; activations are quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    large = weights_of(plain).exists()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # its advice to optimise the graph first, given to the root logger
    try:
        with tempfile.TemporaryDirectory(dir=to.parent) as folder:
            # a copy: onnxruntime writes beside what it reads, by a name that several workers would share
            copy = Path(folder) / plain.name
            for file in (plain, weights_of(plain)) if large else (plain,):
                shutil.copyfile(file, copy.with_name(file.name))
            # one scale a column, and signed weights, as ONNX Runtime advises for VNNI
            quantize_dynamic(
                str(copy),
                str(to),
                weight_type=QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=["MatMul", "Gemm"],
                use_external_data_format=large,
            )
    finally:
        logging.disable(before)
