"""What a GPU gains, and that its paths work: embedding, cuML's UMAP and HDBSCAN, a 13B model in 4 bits, training.

    python -m benchmarks.gpu --data ../shared/data

Needs a GPU, and the extras gpu, llm, finetune and deepspeed; BERTopic for the labels' peer. Every part runs in a process
of its own, is compared with its peer on the same GPU in the same run, and writes what it found at once; one that fails
does not keep the others from running. The language model has random weights in the shape of Llama 2 13B: they decide no
speed, and no model has to be fetched. It is made in ``--scratch``, which needs 26 GB (memory is best: /dev/shm).
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import corpus, read, table
from jobs.benchmark import machine

RESULT = Path(__file__).parent / "results" / "gpu.md"
GIB = 2**30
LLAMA = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "max_position_embeddings": 4096,
}
"""Llama 2 13B (its ``config.json``)."""


def seconds(work: Callable[[], Any]) -> float:
    """Return how long a call takes, with all that it started on the GPU."""
    import torch

    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def rounds(calls: dict[str, Callable[[], Any]], number: int) -> dict[str, list[float]]:
    """Return the seconds of each call, in alternating rounds."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(number):
        for name, call in calls.items():
            found[name].append(seconds(call))
    return found


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return least, median and greatest."""
    return " / ".join(format(value, form) for value in (min(values), statistics.median(values), max(values)))


def embed(options: argparse.Namespace) -> str:
    """Embedding: against ``SentenceTransformer.encode`` in float32 as it comes, and in bfloat16 with large batches."""
    import torch
    from sentence_transformers import SentenceTransformer

    from topicscale.config import EmbeddingConfig
    from topicscale.embedding import Embedder
    from topicscale.models import resolve

    texts = list(dict.fromkeys(read(corpus("docstrings", options.data, documents=options.documents))[0]))
    texts += list(dict.fromkeys(read(corpus("agnews", options.data))[0]))
    texts = texts[: options.documents]
    path = str(resolve("all-MiniLM-L6-v2").path)
    peer = SentenceTransformer(path, device=options.device, model_kwargs={"dtype": torch.float32})
    half = SentenceTransformer(path, device=options.device, model_kwargs={"dtype": torch.bfloat16})
    ours = {name: Embedder(EmbeddingConfig(dtype=name), threads=options.threads, device=options.device) for name in ("float32", "bfloat16")}
    reference = peer.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    cosines, tokens = {}, 0
    for name, embedder in ours.items():
        encoded = embedder.encode(texts)
        cosines[name], tokens = (encoded.vectors * reference).sum(1), encoded.tokens
    half.encode(texts[:2000], batch_size=512, show_progress_bar=False)
    fast = ours["bfloat16"]
    pieces = [texts[i : i + 8192] for i in range(0, len(texts), 8192)]
    times = rounds(
        {
            "SentenceTransformer.encode, float32, batches of 32": lambda: peer.encode(texts, show_progress_bar=False),
            "SentenceTransformer.encode, bfloat16, batches of 512": lambda: half.encode(texts, batch_size=512, show_progress_bar=False),
            "topicscale float32": lambda: ours["float32"].encode(texts),
            "topicscale bfloat16": lambda: fast.encode(texts),
            "topicscale's tokens alone": lambda: [fast._tokenise(piece) for piece in pieces],
        },
        options.rounds,
    )
    first = times["SentenceTransformer.encode, float32, batches of 32"]
    rows = []
    for name, took in times.items():
        agreement = cosines.get(name.removeprefix("topicscale "))
        exact = f"{agreement.mean():.5f} / {agreement.min():.5f}" if agreement is not None else ""
        middle, ratios = statistics.median(took), [a / b for a, b in zip(first, took, strict=True)]
        rows.append([name, f"{len(texts) / middle:,.0f}", f"{tokens / middle:,.0f}", spread(ratios), exact])
    work = tokens * 6 * 12 * 384**2 * 2
    achieved = work / statistics.median(times["topicscale bfloat16"])
    head = ["path", "documents/s", "tokens/s", "ratio, least / median / most", "cosine to the first, mean / least"]
    profile = _profiled(lambda: fast.encode(texts))
    return (
        f"## Embedding ({len(texts):,} docstrings and news of {tokens / len(texts):.0f} tokens, MiniLM, {options.threads} processors)\n\n"
        f"{table(head, rows)}\n\n"
        f"bfloat16 does {achieved / 1e12:.1f} TFLOP/s in the layers' products. Where its time goes, seconds: {profile}."
    )


def _profiled(call: Callable[[], Any]) -> str:
    import cProfile
    import pstats

    profile = cProfile.Profile()
    profile.runcall(call)
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    top = sorted(((row[2], where) for where, row in stats.items()), reverse=True)[:6]
    return ", ".join(f"{Path(file).name}:{name} {own:.2f}" for own, (file, _, name) in top)


def cluster(options: argparse.Namespace) -> str:
    """cuML's UMAP and HDBSCAN against umap-learn's and hdbscan's, on the same vectors."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    from topicscale.cluster import cluster as fit
    from topicscale.config import ClusterConfig, EmbeddingConfig
    from topicscale.embedding import Embedder

    texts, labels = read(corpus("agnews", options.data))
    vectors = Embedder(EmbeddingConfig(), threads=options.threads, device=options.device).encode(texts).vectors
    kinds = {
        "cuml_umap, cuml_hdbscan": ClusterConfig(reduction="cuml_umap", algorithm="cuml_hdbscan"),
        "umap, hdbscan": ClusterConfig(reduction="umap", algorithm="hdbscan"),
    }
    if options.device == "cpu":
        del kinds["cuml_umap, cuml_hdbscan"]
    rows = []
    for name, config in kinds.items():
        for fine in (False, True) if "cuml" in name else (False,):
            fit(vectors[:2000], config, min_cluster_size=15, fine=fine, threads=options.threads)  # compiles
            found: list[Any] = []
            took = [
                seconds(lambda: found.append(fit(vectors, config, min_cluster_size=15, fine=fine, threads=options.threads)))  # noqa: B023
                for _ in range(2)
            ]
            ids = found[0].labels
            inside = ids >= 0
            truth = np.array(labels)
            rows.append(
                [
                    name,
                    "finest" if fine else "as asked",
                    f"{min(took):.2f}",
                    found[0].number,
                    f"{1 - inside.mean():.0%}",
                    f"{normalized_mutual_info_score(truth[inside], ids[inside]):.3f}",
                    f"{adjusted_rand_score(ids, found[1].labels):.3f}",
                ]
            )
            print(rows[-1], flush=True)
    head = ["reduction, algorithm", "clusters", "s", "topics", "outliers", "NMI of the rest", "ARI of two runs"]
    parts = [f"## Clustering (AG News, {len(texts):,} vectors of 384)", table(head, rows)]
    if options.device != "cpu":
        parts += ["Many vectors (each with a little noise added, so that they differ):", _scaled(vectors, options)]
    return "\n\n".join(parts)


def _scaled(vectors: Any, options: argparse.Namespace) -> str:
    from topicscale.cluster import cluster as fit
    from topicscale.config import ClusterConfig

    random = np.random.default_rng(0)
    rows = []
    free = {"random_state": None, "build_algo": "nn_descent"}
    settings: list[tuple[int, dict[str, Any]]] = [(100_000, {}), (100_000, free), (400_000, {}), (400_000, free)]
    for number, params in settings:
        many = np.resize(vectors, (number, vectors.shape[1])) + random.normal(0, 0.02, (number, vectors.shape[1])).astype(np.float32)
        many /= np.linalg.norm(many, axis=1, keepdims=True)
        config = ClusterConfig(reduction="cuml_umap", algorithm="cuml_hdbscan", reduction_params=params)
        found: list[Any] = []
        try:
            took = seconds(lambda: found.append(fit(many, config, min_cluster_size=100, threads=options.threads)))  # noqa: B023
            rows.append([f"{number:,}", json.dumps(params), f"{took:.1f}", found[0].number])
        except Exception as error:
            rows.append([f"{number:,}", json.dumps(params), "", f"{type(error).__name__}: {str(error)[:200]}"])
        print(rows[-1], flush=True)
    return table(["vectors", "reduction_params", "s", "topics"], rows)


def labels(options: argparse.Namespace) -> str:
    """Llama 2 13B's shape in 4 bits: labels a second against BERTopic's TextGeneration, memory, and several workers on one GPU."""
    import torch

    from benchmarks.labels import Peer
    from topicscale.config import LlmConfig
    from topicscale.llm.backend import Batch
    from topicscale.llm.local import Local
    from topicscale.llm.memory import plan, size
    from topicscale.llm.models import resolve

    model = llama(options)
    asks = _asks(options)
    config = LlmConfig(model=str(model), max_new_tokens=options.new_tokens)
    of = size(resolve(config.model), config)
    total = torch.cuda.get_device_properties(0).total_memory if options.device == "cuda" else 24 * GIB
    free = plan(config, of, cpus=16, gpus=1, gpu_memory=total, memory=100 * GIB)
    t4 = plan(config, of, cpus=4, gpus=1, gpu_memory=15 * GIB, memory=16 * GIB)
    said = [f"Planned for this GPU: {free}. For a T4 of 15 GiB: {t4}."]
    began = time.perf_counter()
    ours = Local(config, threads=4, device=options.device, batch=free.batch)
    loading = time.perf_counter() - began
    said.append(f"Loading took {loading:.0f} s. Weights: {ours.memory / GIB:.2f} GiB held, {of.weights / GIB:.2f} computed.")
    prompts = [ours.prompt(ask) for ask in asks]
    ours.complete(asks[:2])
    theirs = _one_by_one(Peer(config, 4, device=options.device), prompts[: max(1, len(prompts) // 8)])
    rows = [["TextGeneration, one by one", f"{1 / theirs:.2f}", "1"]]
    print(rows[-1], flush=True)
    for number in sorted({8, 16, free.batch.prompts}):
        ours._batch = Batch(number, free.batch.tokens)
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        took, answers = _timed(ours, asks)
        rate, written = len(asks) / took, sum(answer.written for answer in answers)
        width = max(answer.read for answer in answers) + options.new_tokens
        rows.append([f"a worker, {number} at once", f"{rate:.2f}", f"{rate * theirs:.1f}"])
        computed = of.need(Batch(number, min(free.batch.tokens, number * width)), fixed=0)
        peak = torch.cuda.max_memory_allocated() if options.device == "cuda" else 0
        said.append(
            f"{number} at once, prompts and answers of up to {width} tokens: {written / took:,.0f} tokens/s, "
            f"{peak / GIB:.1f} GiB at most, {computed / GIB:.1f} computed."
        )
        print(rows[-1], said[-1], flush=True)
    head = [f"labels of {options.new_tokens} tokens", "labels/s", "ratio"]
    return f"## Labels (Llama 2 13B's shape, random weights, nf4)\n\n{table(head, rows)}\n\n" + "\n\n".join(said)


def _asks(options: argparse.Namespace) -> list[Any]:
    """Return asks about Banking77's categories: five questions each, and the words of its name."""
    import csv

    from topicscale.llm.backend import Ask

    questions: dict[str, list[str]] = {}
    with (options.data / "banking77_test.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            questions.setdefault(row["category"], []).append(row["text"])
    return [Ask(tuple(texts[:5]), tuple(name.split("_"))) for name, texts in questions.items()][: options.topics]


def _one_by_one(peer: Any, prompts: list[str]) -> float:
    """Return seconds a label, the better of two rounds."""
    peer.complete(prompts[:1])
    return min(seconds(lambda: peer.complete(prompts)) for _ in range(2)) / len(prompts)


def _timed(model: Any, asks: list[Any]) -> tuple[float, list[Any]]:
    """Return the seconds of the better of two rounds, and the answers."""
    answers: list[Any] = []
    took = min(seconds(lambda: answers.append(model.complete(asks))) for _ in range(2))
    return took, answers[0]


def workers(options: argparse.Namespace) -> str:
    """Several workers of the language model on one GPU, by fraction, in Ray's pool as `topicscale label` runs them."""
    from ray_actors import runtime
    from ray_actors.label import Labeller, gpu_memory
    from ray_actors.pool import Pool, Unit
    from ray_actors.runtime import Layout
    from topicscale.config import LlmConfig, RayConfig
    from topicscale.llm.memory import plan, size
    from topicscale.llm.models import resolve

    model = llama(options)
    asks = _asks(options)
    layout, _ = runtime.start(RayConfig())
    rows, said = [], [f"Ray's own division of this machine: {layout}."]
    import ray

    memory = float(ray.get(ray.remote(num_gpus=1)(gpu_memory).remote())) if options.device == "cuda" else 24.0 * GIB
    for actors in options.workers:
        config = LlmConfig(model=str(model), max_new_tokens=options.new_tokens, actors=actors)
        of = size(resolve(config.model), config)
        gpus = 1.0 if options.device == "cuda" else 0.0
        held = plan(config, of, cpus=layout.cpus * layout.actors, gpus=gpus, gpu_memory=memory, memory=100 * GIB)
        pool = Pool(Layout(held.actors, held.cpus, held.gpus), attempts=1, timeout=300, worker=Labeller)
        given = {"config": config, "batch": held.batch}
        began = time.perf_counter()
        outcomes = list(pool.run("load_llm", [Unit(str(i), given) for i in range(actors)]))
        loading = time.perf_counter() - began
        each = min(held.batch.prompts, math.ceil(len(asks) / actors))
        began = time.perf_counter()
        units = [Unit(str(i), {**given, "asks": asks[i : i + each]}) for i in range(0, len(asks), each)]
        outcomes += list(pool.run("complete", units))
        took = time.perf_counter() - began
        errors = [outcome.error for outcome in outcomes if outcome.error is not None]
        said += [f"{actors}: {error}" for error in errors[:2]]
        rows.append([str(held), f"{loading:.0f}", f"{len(asks) / took:.2f}", len(errors)])
        print(rows[-1], said, flush=True)
        pool.close()
    runtime.stop()
    return "## Workers on one GPU\n\n" + table(["layout", "loading, s", "labels/s", "failed"], rows) + "\n\n" + "\n\n".join(said)


def llama(options: argparse.Namespace) -> Path:
    """Return a folder with a Llama of random weights, made once."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from topicscale.config import LlmConfig
    from topicscale.llm.models import folder as unpacked
    from topicscale.llm.models import resolve

    folder: Path = options.scratch / f"llama-{options.layers}"
    if (folder / "config.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = options.tokenizer or unpacked(resolve(LlmConfig().model))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, folder / name)
    small = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4} if options.layers < 40 else {}
    shape = LLAMA | small | {"num_hidden_layers": options.layers}
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    config = LlamaConfig(
        vocab_size=math.ceil((len(vocabulary["model"]["vocab"]) + len(vocabulary["added_tokens"])) / 64) * 64,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
        **shape,
    )
    h, m = config.hidden_size, config.intermediate_size

    def drawn(*of: int) -> Any:
        return (torch.randn(*of, device=options.device, dtype=torch.bfloat16) * 0.02).cpu()

    files: dict[str, str] = {}

    def save(name: str, tensors: dict[str, Any]) -> None:
        save_file(tensors, folder / name, metadata={"format": "pt"})
        files.update(dict.fromkeys(tensors, name))

    one = torch.ones(h, dtype=torch.bfloat16)
    ends = {f"{name}.weight": drawn(config.vocab_size, h) for name in ("model.embed_tokens", "lm_head")}
    save("ends.safetensors", ends | {"model.norm.weight": one})
    for number in range(options.layers):
        at = f"model.layers.{number}"
        weights = {f"{at}.self_attn.{name}_proj.weight": drawn(h, h) for name in "qkvo"}
        weights |= {f"{at}.mlp.{name}_proj.weight": drawn(m, h) for name in ("gate", "up")} | {f"{at}.mlp.down_proj.weight": drawn(h, m)}
        weights |= {f"{at}.{name}_layernorm.weight": one.clone() for name in ("input", "post_attention")}
        save(f"layer-{number:02}.safetensors", weights)
    total = sum((folder / name).stat().st_size for name in set(files.values()))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": files}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "bos_token_id": 1}))
    config.save_pretrained(folder)
    return folder


def finetune(options: argparse.Namespace) -> str:
    """Training in bfloat16, alone and under DeepSpeed ZeRO-2, against plain sentence-transformers: pairs a second."""
    from benchmarks.finetune import Data, _Steps
    from jobs.finetune import finetune as ours
    from topicscale.config import load
    from topicscale.errors import TopicscaleError

    data = Data(options.data)
    batch, steps = 128, options.steps
    rows, losses = [], {}
    kinds = {
        "alone": {},
        "alone, one checkpoint at the end": {"checkpoint_steps": steps},
        "DeepSpeed ZeRO-1": {"deepspeed": "deepspeed-zero1"},
        "DeepSpeed ZeRO-2": {"deepspeed": "deepspeed-zero2"},
    }
    for name, special in kinds.items():
        log = _Steps()
        settings: dict[str, Any] = {
            "steps": [{"recipe": "cosine", **data.scored}],
            "judges": [data.dev],
            "max_steps": steps,
            "epochs": 10,
            "batch_size": batch,
            "dropout": 0.0,
            **special,
        }
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = ours(load(values={"finetune": settings}), str(Path(folder) / "model"), ui=log)
            except TopicscaleError as error:
                rows.append([name, f"{type(error).__name__}: {str(error)[:300]}", "", "", ""])
                print(rows[-1], flush=True)
                continue
        losses[name] = [loss for _, loss in found["losses"][0]]
        before, after = (found["measures"][which]["sts"]["spearman"] for which in ("base", "model"))
        rate = batch * (steps - 1) / log.seconds
        rows.append([name, f"{rate:,.0f}", f"{losses[name][-1]:.4f}", f"{before:.3f} -> {after:.3f}", f"{found['seconds']:.0f}"])
        print(rows[-1], flush=True)
    rows.append(["sentence-transformers' trainer", f"{_plain(options, batch, steps):,.0f}", "", "", ""])
    head = ["topicscale", "pairs/s", "last loss", "Spearman on STSB dev", "whole command, s"]
    curves = [curve for name, curve in losses.items() if name != "alone" and "alone" in losses]
    worst = [max(abs(a - b) for a, b in zip(losses["alone"], curve, strict=True)) for curve in curves]
    return (
        f"## Fine-tuning (MiniLM, cosine on STSB train, {steps} steps of {batch} pairs, bfloat16)\n\n{table(head, rows)}\n\n"
        f"Greatest difference of a loss from the one without DeepSpeed: {', '.join(f'{value:.1e}' for value in worst)}."
    )


def _plain(options: argparse.Namespace, batch: int, steps: int) -> float:
    """Return the pairs a second of sentence-transformers alone, from the end of its first step."""
    import csv

    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
    from transformers import TrainerCallback

    from topicscale.models import resolve

    with (options.data / "stsb_train.tsv").open(encoding="utf-8") as file:
        lines = [line for line in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if len(line) > 6]
    given = Dataset.from_dict({"a": [r[5] for r in lines], "b": [r[6] for r in lines], "score": [float(r[4]) / 5 for r in lines]})
    model = SentenceTransformer(str(resolve("all-MiniLM-L6-v2").path), device=options.device, model_kwargs={"dtype": torch.float32})
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        args = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            bf16=options.device != "cpu",
            use_cpu=options.device == "cpu",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            dataloader_drop_last=True,
        )
        loss = CosineSimilarityLoss(model)
        trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=given, loss=loss, callbacks=[Clock()])
        trainer.train()
    return batch * (len(marks) - 1) / (marks[-1] - marks[0])


PARTS = {"embed": embed, "cluster": cluster, "finetune": finetune, "labels": labels, "workers": workers}


def main() -> None:
    """Run the parts, each in a process of its own, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu tries the script out")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tokenizer", type=Path, help="a folder with the files of a tokenizer (default: of the packaged model)")
    parser.add_argument("--topics", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--layers", type=int, default=40, help="of the language model; fewer than 40 make a small one")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--timeout", type=int, default=300, help="seconds that a part may take")
    options = parser.parse_args()
    if options.part:
        print(f"\n<<<\n{PARTS[options.part](options)}\n>>>", flush=True)
        return
    found = []
    for name in options.only:
        began = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--part", name],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=options.timeout,
            )  # fmt: skip
            output = done.stdout
        except subprocess.TimeoutExpired as late:
            output = (late.stdout or b"").decode(errors="replace") + f"\ntimed out after {options.timeout} s"
        _, begun, text = output.partition("\n<<<\n")
        part = text.partition("\n>>>")[0] if begun else f"## {name}\n\nFailed:\n\n```\n{output[-3000:]}\n```"
        found.append(f"{part}\n\n({time.perf_counter() - began:.0f} s with start-up.)")
        print(found[-1], flush=True)
        RESULT.write_text("\n\n".join(["# GPU", f"{_gpu()}; {machine()}.", *found]) + "\n", encoding="utf-8")


def _gpu() -> str:
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    except OSError:
        return "no GPU"


if __name__ == "__main__":
    main()
