"""What fine-tuning gains, recipe by recipe, and what it costs.

    python -m benchmarks.finetune --data ../shared/data

Every model is trained by `jobs.finetune`, as the command does it, and judged by files that it was not trained on:

- `sts`: recipes from a raw language model (SmolLM2, its first layers, mean-pooled), Spearman on STSB dev. Softmax and MNR are
  trained on SICK, whose 4,500 pairs stand in for MNLI; cosine and AugSBERT on STSB train; the others on STSB train's texts.
- `adapt`: MiniLM adapted to the texts of Banking77 train without their labels; judged on Banking77 test by k-means at k = 77
  and by the topics of one fit.
- `labels`: MNR on the labels of Banking77 train, judged on Banking77 test.
- `memory`: peak memory of cached MNR at 1,024 examples a step.
- `workers`: one and two workers, the same examples a step: losses and seconds a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import run, table, write
from jobs.finetune import finetune
from jobs.progress import Ui
from topicscale.config import load
from topicscale.errors import TopicscaleError

CHAPTER = {
    "softmax": ".74 (from .615)",
    "cosine": ".848",
    "mnr": ".818",
    "augsbert": ".830 (gold alone .804)",
    "tsdae": ".74",
    "gpl": ".82",
}
"""Spearman on STSB dev that chapter 7 reports, with bert-base or a model that had been trained already."""


class Data:
    """The files, and how they are read."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise SystemExit(f"--data must be the folder with the corpora. There is no {folder}.")
        self.folder = folder
        stsb = {"reader": {"header": False, "quote": "", "sep": "\t"}, "score_range": [0, 5]}
        pairs = {"sentence1": "_c5", "sentence2": "_c6", "score": "_c4"}
        self.scored = {"input": str(folder / "stsb_train.tsv"), "columns": pairs, **stsb}
        self.nli = {
            "input": str(folder / "sick_train.tsv"),
            "columns": {"sentence1": "sentence_A", "sentence2": "sentence_B", "label": "entailment_judgment"},
        }
        self.classes = {"input": str(folder / "banking77_train.csv"), "columns": {"text": "text", "label": "category"}}
        self.texts = {"input": str(folder / "banking77_train.csv"), "columns": {"text": "text"}}
        self.dev = f"sts={folder / 'stsb_dev.tsv'}:_c5,_c6,_c4"
        self.test = [f"clustering={folder / 'banking77_test.csv'}:text,category", f"topics={folder / 'banking77_test.csv'}:text,category"]


def train(step: dict[str, Any], judges: list[str], *, seed: int, **settings: Any) -> dict[str, Any]:
    """Train one model into a folder that is thrown away, and return what it was judged."""
    config = load(values={"finetune": {"steps": [step], "judges": judges, "seed": seed, **settings}})
    with tempfile.TemporaryDirectory() as folder:
        return finetune(config, str(Path(folder) / "model"), ui=Ui("quiet"))


def spread(values: Iterable[float]) -> str:
    """Return mean and spread of several seeds."""
    found = list(values)
    return f"{statistics.mean(found):.3f}" + (f" ± {(max(found) - min(found)) / 2:.3f}" if len(found) > 1 else "")


def _seeds(options: argparse.Namespace) -> str:
    return f"Seeds {', '.join(map(str, options.seeds))}" if len(options.seeds) > 1 else f"Seed {options.seeds[0]}"


def sts(data: Data, options: argparse.Namespace) -> str:
    """Recipes from a raw language model."""
    generated = {"cross_encoder_data": data.scored, "max_passages": options.passages, "queries": 1, "triples": 4}
    recipes: dict[str, dict[str, Any]] = {
        "softmax": data.nli,
        "cosine": data.scored,
        "mnr": data.nli,
        # a quarter of the silver pairs that its default makes
        "augsbert": {**data.scored, "per_sentence": 2},
        "simcse": data.scored,
        "crop": data.scored,
        "ct": data.scored,
        "gpl": {**data.scored, **generated},
        "tsdae": data.scored,
        "mlm": data.scored,
    }
    # one pass over batches of 32, as the chapter trains
    base = {"base": "smollm2-135m-instruct", "layers": options.layers, "pooling": "mean", "max_tokens": 64, "epochs": 1, "batch_size": 32}
    extra: dict[str, dict[str, Any]] = {"simcse": {"batch_size": 64, "dropout": 0.1}, "crop": {"batch_size": 64}}
    rows = []
    for name in [name for name in recipes if not options.recipes or name in options.recipes]:
        chapter = CHAPTER.get(name, "")
        try:
            step, settings = {"recipe": name, **recipes[name]}, {**base, **extra.get(name, {})}
            found = [train(step, [data.dev], seed=seed, **settings) for seed in options.seeds]
        except TopicscaleError as error:
            rows.append([name, "", "", "", "", chapter, f"refused: {error}"])
            continue
        before = found[0]["measures"]["base"]["sts"]["spearman"]
        after = [one["measures"]["model"]["sts"]["spearman"] for one in found]
        gain = statistics.mean(after) - before
        seconds = statistics.mean(one["seconds"] for one in found)
        rows.append([name, f"{before:.3f}", spread(after), f"{gain:+.3f}", found[0]["training_steps"], chapter, f"{seconds:.0f} s"])
        print(rows[-1], [f"{one:.4f}" for one in after], file=sys.stderr, flush=True)
    head = ["recipe", "base", "trained", "gain", "steps", "chapter 7", "note"]
    return (
        f"## From a raw language model (SmolLM2-135M, first {options.layers} of 30 layers, mean-pooled): Spearman on STSB dev\n\n"
        f"{_seeds(options)}. The chapter's bases and data are others: its softmax and MNR learned from MNLI (393,000 pairs); "
        "SICK's 4,500 stand in; its TSDAE and GPL learned from the very sentences of dev, these from train.\n\n"
        f"{table(head, rows)}"
    )


def adapt(data: Data, options: argparse.Namespace) -> str:
    """Unsupervised adaptation of MiniLM to Banking77."""
    generator = {"cross_encoder_data": {**data.scored}, "max_passages": options.passages, "queries": 1}
    steps: dict[str, dict[str, Any]] = {"clnn": {}, "crop": {}, "simcse": {}, "tsdae": {}, "gpl": generator}
    rows = []
    for name in [name for name in steps if not options.recipes or name in options.recipes]:
        found = [train({"recipe": name, **data.texts, **steps[name]}, data.test, seed=seed, **_short(options)) for seed in options.seeds]
        rows.append(_banking(name, found))
        print(rows[-1], file=sys.stderr, flush=True)
    return (
        "## MiniLM adapted to Banking77's texts without labels (train), judged on test\n\n"
        f"{_seeds(options)}, texts of at most 32 tokens. `verdict` is the guard's, by k-means NMI.\n\n{table(_BANKING, rows)}"
    )


def labels(data: Data, options: argparse.Namespace) -> str:
    """MNR on labels."""
    rows = []
    for name in ("mnr",):
        step = {"recipe": name, **data.classes}
        found = [train(step, data.test, seed=seed, **_short(options)) for seed in options.seeds]
        rows.append(_banking(name, found))
        print(rows[-1], file=sys.stderr, flush=True)
    return f"## MiniLM trained on Banking77's labels (train), judged on test\n\n{_seeds(options)}.\n\n{table(_BANKING, rows)}"


def _short(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of Banking77's questions, 12 words on average."""
    given = {"max_steps": options.max_steps, "epochs": options.epochs}
    return {"max_tokens": 32, **{key: value for key, value in given.items() if value}}


_BANKING = ["recipe", "k-means NMI", "topics: NMI", "topics: NPMI", "topics", "steps", "s", "verdict"]


def _banking(name: str, found: list[dict[str, Any]]) -> list[str]:
    def pair(task: str, key: str) -> str:
        before = found[0]["measures"]["base"][task][key]
        return f"{before:.3f} -> {spread(one['measures']['model'][task][key] for one in found)}"

    seconds = statistics.mean(one["seconds"] for one in found)
    number = f"{found[0]['measures']['base']['topics']['topics']:.0f} -> {found[0]['measures']['model']['topics']['topics']:.0f}"
    status = ", ".join(sorted({one["status"] for one in found}))
    return [
        name,
        pair("clustering", "nmi"),
        pair("topics", "nmi"),
        pair("topics", "npmi"),
        number,
        found[0]["training_steps"],
        f"{seconds:.0f}",
        status,
    ]


def memory(data: Data, options: argparse.Namespace) -> str:
    """Peak memory of cached MNR at 1,024 examples a step."""
    rows = []
    for name, batch in (("cached-mnr", 1024), ("mnr", 128)):
        with tempfile.TemporaryDirectory() as folder:
            sets = ["max_steps=2", f"batch_size={batch}", "max_tokens=64", "held_out=0.05"]
            step = json.dumps([{"recipe": name, **data.classes}])
            command = [sys.executable, "-m", "jobs.cli", "finetune", "--output", f"{folder}/model", "--force", "--quiet"]
            command += [part for item in [*sets, f"steps={step}"] for part in ("--set", f"finetune.{item}")]
            found = run(command)
        rows.append([name, batch, f"{found.peak / 2**30:.2f}", f"{found.seconds:.0f}"])
        print(rows[-1], file=sys.stderr, flush=True)
    head = ["recipe", "examples a step", "peak GiB of the process tree", "s for 2 steps, start-up and judging included"]
    return f"## Memory (MiniLM, 64 tokens)\n\n{table(head, rows)}"


def workers(data: Data, options: argparse.Namespace) -> str:
    """One worker against two, the same examples a step."""
    curves, seconds = {}, {}
    for number in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            config = load(
                values={
                    "finetune": {
                        "steps": [{"recipe": "cosine", **data.scored}],
                        "judges": [data.dev],
                        "workers": number,
                        "max_steps": 30,
                        "dropout": 0.0,
                    }
                }
            )
            log = _Steps()
            curves[number] = [loss for _, loss in finetune(config, str(Path(folder) / "model"), ui=log)["losses"][0]]
            seconds[number] = log.seconds
    worst = max(abs(a - b) for a, b in zip(curves[1], curves[2], strict=True))
    efficiency = seconds[1] / seconds[2] / 2 if seconds[2] else 0.0
    rows = [[f"{seconds[1]:.1f}", f"{seconds[2]:.1f}", f"{seconds[1] / seconds[2]:.2f}", f"{efficiency:.0%}", f"{worst:.1e}"]]
    head = [
        "1 worker of 2 threads, s for 29 steps",
        "2 workers of 1 thread, s",
        "ratio",
        "of twice one worker",
        "greatest difference of a loss",
    ]
    return (
        "## Workers (cosine on STSB train, MiniLM, 30 steps of 32 pairs, dropout 0)\n\n"
        "One process uses both processors too: a second gains no more than what the first leaves idle, so the ratio to aim at is 1.\n\n"
        f"{table(head, rows)}"
    )


class _Steps(Ui):
    """Takes down what training says of itself."""

    def __init__(self) -> None:
        super().__init__("quiet")
        self.seconds = 0.0

    def log(self, event: str, message: str, **fields: Any) -> None:
        if fields.get("stage") == "finetune":
            self.seconds = fields["seconds"]


def main() -> None:
    """Run the parts and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parts = {"sts": sts, "adapt": adapt, "labels": labels, "memory": memory, "workers": workers}
    parser.add_argument("--only", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--recipes", nargs="+", help="of sts and adapt, only these")
    parser.add_argument("--max-steps", type=int, help="of adapt and labels, at most so many steps")
    parser.add_argument("--epochs", type=int, help="of adapt and labels, passes over the texts (default: the recipe's own)")
    parser.add_argument("--layers", type=int, default=6, help="of SmolLM2's 30 (default: 6)")
    parser.add_argument("--passages", type=int, default=500, help="texts that GPL makes a query each for (default: 500)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="of sts, adapt and labels, a training each (default: 42)")
    options = parser.parse_args()
    data = Data(options.data)
    began = time.monotonic()
    found: list[str] = []
    for name in options.only:  # what is measured is written down at once
        found.append(parts[name](data, options))
        write("finetune", "Fine-tuning embedding models", [*found, f"All of it took {(time.monotonic() - began) / 60:.0f} minutes."])


if __name__ == "__main__":
    main()
