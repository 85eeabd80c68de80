"""The options of every command: what ``topicscale COMMAND --help`` tells."""

from __future__ import annotations

import argparse
from importlib import metadata

from topicscale.config import presets


def version() -> str:
    """Return the version of the installed package."""
    try:
        return metadata.version("topicscale")
    except metadata.PackageNotFoundError:  # a checkout that was not installed
        return "unknown"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; it leaves the command's name in ``command``."""
    made = argparse.ArgumentParser(
        prog="topicscale",
        description="Topic modelling for corpora that do not fit one machine, or may not leave it.",
        epilog="topicscale COMMAND --help tells a command's options. Exit codes: 0 done, 1 units failed or too much of the input "
        "is bad, 2 the request is wrong or the store cannot be used, 130 interrupted.",
    )
    made.add_argument("--version", action="version", version=f"topicscale {version()}")
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, text: str, *, store: str | None = "the folder of Delta tables", storage: bool = True, abbreviations: bool = True
    ) -> argparse.ArgumentParser:
        shape = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, help=text, description=text, formatter_class=shape, allow_abbrev=abbreviations)
        command.set_defaults(command=name, storage=None)
        if store is not None:
            command.add_argument("--store", required=True, metavar="URI", help=store)
        if storage:
            text = "YAML file whose block `storage` tells how s3://, gs:// and abfss:// are reached (default: the AWS_... variables)"
            command.add_argument("--storage", metavar="FILE", help=text)
        command.add_argument(
            "--json", action="store_true", help="result as JSON on the standard output, messages as JSON lines on the error stream"
        )
        return command

    run = add(
        "run",
        "Read a corpus, find its topics, write Delta tables. What is done already is skipped.",
        store="the folder of Delta tables; made if there is none",
        storage=False,  # its --config says it
    )
    run.epilog = (
        "examples:\n"
        "  topicscale run --input tickets.csv --text-column body --store tickets/\n"
        "  topicscale run --input 'mail/*.jsonl.gz' --partition-column site --store mail/ --set topics.min_size=50\n"
        "  topicscale run --input news.csv --set input.options='{header: false}' --text-column _c1,_c2 --store news/ --dry-run"
    )
    run.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="files, folders or globs of one format: csv, tsv, json lines, parquet, text (a line a document); or a Delta table. "
        "Required, unless the configuration has input.paths",
    )
    run.add_argument("--text-column", metavar="C[,C]", help="column(s) with the text; several are joined (default: text)")
    run.add_argument("--id-column", metavar="C", help="column with a unique id (default: a hash of what is stored of the row)")
    run.add_argument("--keep", metavar="C,C", help="input columns to keep beside the text (default: all of a simple type)")
    how = run.add_mutually_exclusive_group()
    how.add_argument("--partition-column", metavar="C", help="one partition per value of this column (at most 10,000)")
    how.add_argument(
        "--partitions",
        type=int,
        metavar="N",
        help="number of partitions, by hash of the text (default: 25,000 documents or 100 million characters each)",
    )
    run.add_argument("--min-topic-size", type=int, metavar="N", help="smallest topic, in documents (default: 10)")
    run.add_argument("--topics", metavar="N|auto", help="number of topics; auto finds it (default: auto)")
    _configured(run, "any value of the configuration, as YAML; may be repeated")
    run.add_argument("--dry-run", action="store_true", help="check everything and print the plan, start nothing")

    update = add(
        "update",
        "Add new documents to a store. They are assigned to the topics there are; what fits none becomes new topics. "
        "Ids of topics and assignments of older documents never change, except with --refit.",
    )
    update.add_argument("--input", nargs="+", metavar="PATH", help="the new documents, laid out as those of the store's run")
    update.add_argument("--refit", action="store_true", help="fit the topics of all documents anew, as a new generation")
    _configured(
        update,
        "input.* of this batch, ray.*, spark.*, llm.* of this machine; with --refit any but partition.* and input.* (of which "
        "embedding_column)",
        file=False,
    )
    forget = add(
        "forget",
        "Remove documents from every table and every sum, and delete the files that held them. Earlier generations go with them.",
    )
    forget.add_argument("--ids", required=True, metavar="FILE", help="one doc_id a line")
    forget.add_argument("--quiet", action="store_true", help="warnings and errors only")
    label = add(
        "label",
        "Describe the topics of a store: keywords that are like its documents (keybert), that are unlike each other (mmr), and labels by "
        "a language model (llm). Asked again, only what is missing or changed is done.",
    )
    label.epilog = (
        "examples:\n"
        "  topicscale label --store news/\n"
        "  topicscale label --store news/ --aspect llm --set llm.url=http://localhost:8000/v1 --set llm.model=my-model\n"
        "  topicscale label --store news/ --aspect llm --config llama2 --topics 3,7"
    )
    label.add_argument(
        "--aspect",
        metavar="NAME",
        help="one aspect of represent.aspects, or keybert, mmr, pos, llm (default: all; without any keybert, mmr and llm)",
    )
    label.add_argument("--topics", metavar="N,N", help="only these topics")
    label.add_argument("--only-unlabelled", action="store_true", help="leave out topics that have the aspect")
    _configured(label, "represent.*, llm.*, ray.* or spark.*, as YAML; may be repeated")
    finetune = add(
        "finetune",
        "Train an embedding model on a store's documents or on labelled texts, judge it against its base, and publish it to the store "
        "if it is better. Killed and started again, it goes on from its last checkpoint.",
        store=None,
    )
    finetune.epilog = (
        "recipes:\n"
        "  on texts alone       clnn, crop, gpl, tsdae, mlm, simcse, ct\n"
        "  on pairs             mnr, mnr-hard, cached-mnr     anchor, positive[, negative]\n"
        "  on scored pairs      cosine, augsbert              sentence1, sentence2, score\n"
        "  on inference pairs   softmax, mnr                  sentence1, sentence2, label\n"
        "  on classes           setfit, mnr                   text, label\n"
        "tsdae,cosine trains one after the other; mnr+cosine trains both together. gpl needs a file, or the preset of its name, and no\n"
        "--recipe (see docs/finetuning.md).\n\n"
        "examples:\n"
        "  topicscale finetune --recipe crop --store tickets/ --output tickets-minilm\n"
        "  topicscale finetune --recipe mnr --input papers.jsonl --columns anchor=title,positive=abstract --output papers-minilm/\n"
        "  topicscale update --refit --store tickets/ --set embedding.model=tickets-minilm\n"
        "  topicscale finetune --config gpl --store tickets/ --output tickets-gpl\n"
        "Exit code 1: the model was trained, and is worse than its base."
    )
    finetune.add_argument("--recipe", metavar="NAME", help="what is trained (see below), where --config has no finetune.steps")
    finetune.add_argument("--store", metavar="URI", help="a store: its documents are trained on, and the model is published to it")
    finetune.add_argument("--input", nargs="+", metavar="PATH", help="labelled texts: csv, tsv, json lines, parquet or a Delta table")
    finetune.add_argument("--columns", metavar="NAME=C,...", help="the columns of --input, by the names below (default: their usual names)")
    finetune.add_argument(
        "--base", metavar="MODEL", help="packaged name, folder, hub id, or a model of the store (default: all-MiniLM-L6-v2)"
    )
    finetune.add_argument("--output", required=True, metavar="NAME", help="the model's name in the store; without --store a new folder")
    finetune.add_argument(
        "--judge", action="append", metavar="TASK", help="what base and model are judged by, as `evaluate --task` takes it; may be repeated"
    )
    finetune.add_argument("--measure", metavar="TASK.MEASURE", help="the measure that decides (default: the first judge's own)")
    finetune.add_argument(
        "--workers", type=int, metavar="N", help="processes that train together (default: as many of the GPUs as divide a batch)"
    )
    finetune.add_argument("--force", action="store_true", help="publish the model although it is worse than its base; that is noted")
    _configured(finetune, "finetune.*, embedding.prompt, input.format, input.options or ray.*, as YAML")
    finetune.add_argument("--dry-run", action="store_true", help="check everything and print the plan, start nothing")
    add("models", "List the embedding models that were trained on a store, and what they were judged.")
    merge = add(
        "merge",
        "Merge the topics of several stores into one, without their documents unless asked for. Order and grouping of the inputs change "
        "nothing.",
        store="the store to write; made if there is none",
    )
    merge.add_argument(
        "--inputs", nargs="+", required=True, metavar="[NAME=]STORE", help="stores of sites, exports of them, or earlier merges"
    )
    merge.add_argument(
        "--similarity",
        default="auto",
        metavar="auto|S",
        help="join topics while their mean cosine is at least S; auto takes the granularity that the sites found themselves (default)",
    )
    merge.add_argument(
        "--match", choices=["embeddings", "terms"], default="embeddings", help="compare topics by vectors (default), or by words"
    )
    merge.add_argument(
        "--documents", action="store_true", help="copy the documents of the inputs that hold any, each into the merged topic of its own"
    )
    merge.add_argument("--quiet", action="store_true", help="warnings and errors only")

    export = add(
        "export",
        "Write what a site may send away: its topics, without documents and without what few documents say, for merge to read. "
        "With --model: an embedding model in other forms, and what each costs and loses.",
        store=None,
    )
    export.epilog = (
        "examples:\n"
        "  topicscale export --store clinic/ --topics-only --output out/\n"
        "  topicscale export --model all-MiniLM-L6-v2 --output minilm/ --reference tickets.csv:body --task sts=stsb.tsv:_c5,_c6,_c4"
    )
    export.add_argument("--store", metavar="URI", help="the folder of Delta tables; required without --model")
    export.add_argument("--output", required=True, metavar="DIR", help="a new or empty folder")
    export.add_argument("--topics-only", action="store_true", help="no documents; required, as nothing else of a store can be exported yet")
    export.add_argument(
        "--min-document-frequency",
        type=int,
        metavar="K",
        help="leave out terms in fewer than K documents of a topic, and topics of fewer than K documents (default: 10, at least 2)",
    )
    export.add_argument("--site", metavar="NAME", help="the name to go by (default: the store folder's)")
    export.add_argument("--model", metavar="NAME", help="an embedding model: a model of --store, packaged name, folder or hub id")
    export.add_argument("--formats", metavar="F,F", help="of the model (default: fp32,bf16,onnx,onnx-int8)")
    export.add_argument(
        "--reference", nargs="+", action="extend", default=[], metavar="FILE[:COLUMN]", help="texts to measure the formats with"
    )
    export.add_argument(
        "--task", nargs="+", action="extend", default=[], metavar="TASK", help="measure the formats' loss, as evaluate --task does"
    )

    plan = add(
        "plan",
        "Tell, stage by stage, how long a corpus takes on given machines, what memory, storage and network it needs, what it costs, and "
        "what limits. Computed from measured rates; nothing is started.",
        store=None,
    )
    plan.epilog = (
        "examples:\n"
        "  topicscale plan --documents 1e9 --tokens 60 --gpus 64 --spark-cores 512\n"
        "  topicscale plan --documents 2e6 --tokens 120 --spark-cores 32 --ray-cpus 64\n"
        "  topicscale plan --documents 1e8 --tokens 60 --gpus 8 --spark-cores 128 --cost-gpu-hour 2.5 --cost-core-hour .04 --json"
    )
    plan.add_argument("--documents", required=True, metavar="N", help="for example 1e9")
    plan.add_argument("--tokens", required=True, type=float, metavar="N", help="of a document, in the mean (an English word is about 1.3)")
    plan.add_argument("--gpus", type=int, default=0, metavar="N", help="one worker for each (default: 0, embedding on processors)")
    plan.add_argument("--spark-cores", required=True, type=int, metavar="N", help="of all executors together")
    plan.add_argument("--ray-cpus", type=int, metavar="N", help="of all workers together (default: 8 a GPU; without GPUs --spark-cores)")
    plan.add_argument("--model-dim", type=int, default=384, metavar="N", help="dimensions of the embedding model (default: 384)")
    plan.add_argument("--topics", type=int, metavar="N", help="topics expected (default: one for 200 documents, at most 2,000)")
    plan.add_argument("--labels", action="store_true", help="with names by the language model")
    plan.add_argument("--cost-gpu-hour", type=float, metavar="X", help="price of a GPU for an hour")
    plan.add_argument("--cost-core-hour", type=float, metavar="X", help="price of a processor core for an hour")
    plan.add_argument("--cost-gb-month", type=float, metavar="X", help="price of a gigabyte of storage for a month")
    plan.add_argument("--rates", metavar="FILE", help="rates of your own, as benchmark writes them (default: the packaged ones)")
    benchmark = add(
        "benchmark",
        "Run the whole job on a sample and write the rates of this machine or cluster, for plan --rates.",
        store=None,
    )
    benchmark.epilog = (
        "examples:\n"
        "  topicscale benchmark --output rates.yaml\n"
        "  topicscale benchmark --output rates.yaml --input tickets.csv --text-column body\n"
        "  topicscale benchmark --output rates.yaml --ray auto --spark spark://host:7077 --spark-cores 64 --folder /shared/tmp"
    )
    benchmark.add_argument("--output", required=True, metavar="FILE", help="the rates, as YAML")
    benchmark.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="a corpus of at least 5,000 documents, as run takes it (default: docstrings of the installed packages)",
    )
    benchmark.add_argument("--text-column", metavar="C[,C]", help="column(s) with the text (default: text)")
    benchmark.add_argument("--documents", metavar="N", help="of the docstrings, without --input (default: 20000, at least 5000)")
    benchmark.add_argument("--ray", metavar="ADDRESS", help="a running Ray cluster (default: this machine)")
    benchmark.add_argument("--spark", metavar="MASTER", help="a Spark master or sc://... (default: this machine)")
    benchmark.add_argument("--spark-cores", type=int, metavar="N", help="of all executors together; required with --spark")
    benchmark.add_argument(
        "--folder", metavar="DIR", help="where samples and stores go for a while; with a cluster one that all its machines share"
    )
    _configured(benchmark, "any value of the configuration, as YAML; may be repeated")

    add("status", "Show stages, partitions done, failed and pending, rows, quarantine by reason, and rates.")
    topics = add("topics", "List topics with their sizes and keywords.")
    topics.add_argument("--top", type=int, metavar="N", help="the N largest (default: all)")
    report = add("report", "Write a self-contained HTML report.")
    report.add_argument("--output", required=True, metavar="FILE", help="for example report.html")
    evaluate = add(
        "evaluate",
        "Measure topic quality: coherence, diversity, and agreement with a column of labels. With --model: rank embedding models by tasks.",
        store=None,
    )
    evaluate.epilog = (
        "tasks, with columns by their names, or _c0, _c1 ... in a file without a header:\n"
        "  sts=PATH[:sentence1,sentence2,score]    classification=TRAIN,TEST[:text,label]\n"
        "  clustering=PATH[:text,label]            retrieval=PATH[:anchor,positive]\n"
        "  topics (the store's documents)          topics=PATH[:text[,label]]\n"
        "examples:\n"
        "  topicscale evaluate --store tickets/ --labels desk\n"
        "  topicscale evaluate --model all-MiniLM-L6-v2 ./mine --task sts=stsb.tsv:_c5,_c6,_c4 clustering=bank.csv:text,category\n"
        "  topicscale evaluate --model all-MiniLM-L6-v2 ./mine --store tickets/ --task topics"
    )
    evaluate.add_argument("--store", metavar="URI", help="the folder of Delta tables; required without --model")
    evaluate.add_argument("--labels", metavar="COLUMN", help="a column of documents that holds the true classes")
    evaluate.add_argument(
        "--model", nargs="+", action="extend", default=[], metavar="NAME", help="models of --store, packaged names, folders, hub ids"
    )
    evaluate.add_argument("--task", nargs="+", action="extend", default=[], metavar="TASK", help="what models are judged by; see below")
    diff = add("diff", "Tell what changed between two generations or stores: topics found, gone, grown, ...", store=None)
    diff.epilog = (
        "examples:\n"
        "  topicscale diff --from tickets/@1 --to tickets/@2\n"
        "  topicscale diff --from monday/ --to tuesday/ --min-change .25 --json"
    )
    diff.add_argument("--from", required=True, metavar="STORE[@GENERATION]", help="the earlier side; without a generation the newest")
    diff.add_argument("--to", required=True, metavar="STORE[@GENERATION]", help="the later side")
    diff.add_argument(
        "--min-change", type=float, default=0.1, metavar="X", help="a topic has grown when it is larger by this much (default: .1)"
    )

    submit = add(
        "submit",
        "Send another command to a Ray cluster, and follow it: topicscale submit run --input s3://... --store s3://... --ray ADDRESS. "
        "Paths are the cluster's.",
        store=None,
        storage=False,  # it is the sent command's
        abbreviations=False,
    )
    submit.usage = "topicscale submit COMMAND ... --ray ADDRESS [--spark MASTER] [options of submit and of the command]"
    submit.epilog = (
        "Secrets are not sent: credentials of stores and models are in the environment of the cluster's machines. The cluster's token is "
        "read from\nRAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. Ctrl-C stops following, not the job. The exit code is the "
        "command's.\n\nexamples:\n"
        "  topicscale submit run --input s3://in/news/ --store s3://topics/news --config news.yaml --ray http://localhost:8265 "
        "--spark sc://spark:15002\n"
        "  topicscale submit label --store s3://topics/news --aspect llm --config llama2 --ray http://localhost:8265 --no-wait"
    )
    api = "(default: RAY_API_SERVER_ADDRESS, or RAY_ADDRESS where it begins with http)"
    submit.add_argument("--ray", metavar="ADDRESS", help=f"the head's job API, such as http://head:8265 {api}")
    submit.add_argument("--spark", metavar="MASTER", help="spark://host:7077, or sc://host:15002 (default: inside the job's driver)")
    submit.add_argument("--no-wait", action="store_true", help="print the job's id and leave")
    submit.add_argument("--job-id", metavar="ID", help="the job's id (default: made up)")
    submit.add_argument("--working-dir", metavar="DIR", help="a folder to send with the job: a checkout, if the cluster has no topicscale")
    submit.add_argument("--image", metavar="IMAGE", help="a container image to run the job in")
    submit.add_argument("--runtime-env", metavar="FILE", help="more of Ray's runtime environment, as YAML")
    known = add("jobs", "List jobs that were submitted to a cluster, show what one has said, or stop it.", store=None, storage=False)
    known.add_argument("action", choices=["list", "logs", "stop"])
    known.add_argument("job", nargs="?", metavar="ID", help="of logs and stop")
    known.add_argument("--ray", metavar="ADDRESS", help=f"the head's job API {api}")
    known.add_argument("--follow", action="store_true", help="logs: go on until the job ends, and leave with its exit code")
    return made


def _configured(command: argparse.ArgumentParser, what: str, *, file: bool = True) -> None:
    if file:
        command.add_argument("--config", metavar="FILE", help=f"YAML file, or the name of a preset: {', '.join(presets())}")
    command.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help=what)
    command.add_argument("--quiet", action="store_true", help="warnings and errors only")
