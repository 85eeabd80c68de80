"""Labels a second against BERTopic's TextGeneration, memory of a worker, and how well labels find their topics.

    python -m benchmarks.labels --data ../shared/data

Topics of AG News and Banking77, the packaged model, in 4 bits unless told otherwise (the code path that Llama 2 takes), greedy.
Speed: the same prompts go through BERTopic's own TextGeneration over a transformers pipeline (same weights, same quantisation, at most
as many new tokens) and through a worker's `complete`, in alternating rounds, both loaded beforehand. A worker stops at the end of an
answer's first line, where a label ends; the peer has no such rule, and goes on. Quality: mean reciprocal
ranks of `topicscale label` with several candidates a topic.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import corpus, table, write
from topicscale.llm.backend import Ask, Batch
from topicscale.store import Store

MIB = 2**20


def topics(store: Path, number: int) -> list[Ask]:
    """Return what the first prompts of a store's topics are made of."""
    reader = Store(store)
    reader.pin()
    rows = [row for row in reader.read("topics").sort_by("topic_id").to_pylist() if row["topic_id"] >= 0]
    return [Ask(tuple(row["representative_docs"]), tuple(row["keywords"])) for row in rows[:number]]


def first_line(text: str | None) -> str:
    """Return what is used of an answer."""
    return next((line.strip() for line in (text or "").splitlines() if line.strip()), "")


class Peer:
    """BERTopic's TextGeneration, given one finished prompt after another."""

    def __init__(self, config: Any, threads: int, *, device: str = "cpu") -> None:
        import torch
        from bertopic.representation import TextGeneration
        from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, pipeline

        from topicscale.llm.models import computed_in, folder, resolve

        torch.set_num_threads(threads)
        where = folder(resolve(config.model))
        dtype, quantization = getattr(torch, computed_in(config)), None
        if config.quantization == "nf4":
            quantization = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
            )
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype, quantization_config=quantization, device_map={"": 0 if device == "cuda" else "cpu"}, use_safetensors=True
        )
        generator = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(where))
        self._generation = TextGeneration(
            generator, prompt="x", pipeline_kwargs={"do_sample": False, "max_new_tokens": config.max_new_tokens, "return_full_text": True}
        )
        self.verbose = False  # of the topic model that TextGeneration asks for it

    def complete(self, prompts: list[str]) -> list[str]:
        """Return the texts that follow the prompts."""
        found = []
        for prompt in prompts:
            self._generation.prompt = prompt
            found.append(self._generation.extract_topics(self, None, None, {0: [("word", 1.0)]})[0][0][0])
        return found


def speed(asks: list[Ask], config: Any, *, rounds: int, threads: int) -> tuple[list[str], str]:
    """Return a row of the table of speeds, and what differs in the texts."""
    from topicscale.llm.local import Local
    from topicscale.llm.memory import CPU_BATCH

    ours = Local(config, threads=threads, device="cpu", batch=Batch(config.batch_size or CPU_BATCH))
    prompts = [ours.prompt(ask) for ask in asks]
    peer = Peer(config, threads)
    ours.complete(asks[:2])
    peer.complete(prompts[:1])
    mine, theirs = [], []
    said: list[str] = []
    theirs_said: list[str] = []
    for number in range(rounds):
        began = time.perf_counter()
        said = [first_line(answer.text) for answer in ours.complete(asks)]
        mine.append(time.perf_counter() - began)
        began = time.perf_counter()
        theirs_said = [first_line(text) for text in peer.complete(prompts)]
        theirs.append(time.perf_counter() - began)
        print(f"round {number + 1}: ours {mine[-1]:.1f} s, TextGeneration {theirs[-1]:.1f} s", flush=True)
    same = sum(a == b for a, b in zip(said, theirs_said, strict=True))
    a, b = statistics.median(mine), statistics.median(theirs)
    pairs = ", ".join(f"{x:.0f}/{y:.0f}" for x, y in zip(mine, theirs, strict=True))
    row = [f"{len(asks)}", f"{len(asks) / a:.2f}", f"{len(asks) / b:.2f}", f"{b / a:.1f}", pairs, f"{same / len(asks):.0%}"]
    other = [f"- `{y}` became `{x}`" for x, y in zip(said, theirs_said, strict=True) if x != y]
    return row, "Texts that differ:\n\n" + "\n".join(other) if other else "No text differs."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--topics", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=None, help="prompts at once (default: as `label` chooses without a GPU)")
    parser.add_argument("--quantization", choices=["nf4", "none"], default="nf4", help="of both sides' weights, for the speed")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="that both sides compute in, for the speed")
    parser.add_argument("--only", choices=["speed", "quality"], default=None)
    arguments = parser.parse_args()

    from jobs.label import label
    from jobs.progress import Ui
    from jobs.run import run
    from topicscale.config import LlmConfig, load
    from topicscale.llm.local import Local

    quiet = Ui("quiet")
    parts: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        stores = {}
        for name in ("banking77", "agnews"):
            stores[name] = Path(scratch) / name
            run(load(values={"input": {"paths": [str(corpus(name, arguments.data))], "id_column": "id"}}), str(stores[name]), ui=quiet)
        if arguments.only != "quality":
            asks = [ask for store in stores.values() for ask in topics(store, arguments.topics)][: arguments.topics]
            config = LlmConfig(batch_size=arguments.batch, quantization=arguments.quantization, dtype=arguments.dtype)
            row, differ = speed(asks, config, rounds=arguments.rounds, threads=arguments.threads)
            head = ["topics", "topicscale labels/s", "TextGeneration labels/s", "ratio", "rounds (s/s)", "same text"]
            parts += [f"## Speed ({arguments.quantization}, {arguments.dtype})", table(head, [row]), differ]
            sizes = []
            for quantization in ("nf4", "none"):
                held = dataclasses.replace(config, quantization=quantization, dtype="bfloat16")
                model = Local(held, threads=arguments.threads, device="cpu", batch=Batch(1))
                sizes.append([quantization, f"{model.memory / MIB:.0f}"])
            parts += ["## Weights in memory", table(["quantization", "MiB"], sizes)]
        if arguments.only != "speed":
            rows = []
            for name, store in stores.items():
                found = label(store, aspect="llm", overrides=[f"llm.candidates={arguments.candidates}"], ui=quiet)
                mrr = found["mean_reciprocal_rank"]
                cells = [
                    f"{found['topics']}",
                    f"{len(found['fallback'])}",
                    *(f"{mrr[key]:.3f}" for key in ("labels", "one_shot", "keywords")),
                ]
                rows.append([name, *cells, f"{found['seconds']:.0f}"])
                print(rows[-1], flush=True)
            head = ["corpus", "topics", "fallback", "checked candidates", "first answers", "three keywords", "s"]
            parts += ["## How well labels find their topic (mean reciprocal rank)", table(head, rows)]
    write("labels", "Labels by the packaged language model in 4 bits", parts)


if __name__ == "__main__":
    main()
