"""The configuration: one frozen, typed tree. This file is its schema.

Read from YAML files and ``key.path=value`` overrides; later sources win. An unknown key is an error that names the
nearest known one. What the variables of the environment say of values that are left open is read here alone; secrets, the job API's address
and what the engines themselves are told by variables are read where they are used.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
import re
import types
import typing
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from topicscale.errors import ConfigError

NAME_CHARS = 200
"""Characters of a topic's name."""
SECRET = re.compile(
    r"(access|account|api|customer|master|private|sas)[._]?key|secret|token|passw|credential|sas\b|service_account", re.IGNORECASE
)
"""What the name of a setting or variable that holds a secret has in it."""
_COUNTS = ("tokens", "token_ids", "token_budget")
"""How names of a request end that are about a model's tokens."""
_REFERENCES = ("spark.kubernetes.driver.secret", "spark.kubernetes.executor.secret")
"""Settings that name secrets and do not hold them."""
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,99}")
_DOTTED = ("spark.conf", "storage.options")
"""Mappings of names that have dots in them."""
_ENVIRONMENT = (
    "Credentials come from the environment alone: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role; "
    "GOOGLE_APPLICATION_CREDENTIALS; AZURE_... (docs/storage.md); SPARK_CONNECT_AUTHENTICATE_TOKEN; _SPARK_AUTH_SECRET (docs/clusters.md)."
)


@dataclass(frozen=True)
class InputConfig:
    """What is read."""

    paths: tuple[str, ...] = ()
    """Files, folders or globs."""
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet", "text", "delta"] = "auto"
    """``auto`` goes by the files' names."""
    text_column: tuple[str, ...] = ("text",)
    """Column(s) with the text; several are joined by a blank line."""
    id_column: str | None = None
    """Column with a unique id; without one, an id is derived from what is stored of the row."""
    embedding_column: str | None = None
    """Column with precomputed vectors (array of numbers); they are used as they are, L2-normalised. Where ``embedding.model`` names the
    model that made them, stores merge with others of that model."""
    keep: tuple[str, ...] | None = None
    """Input columns carried into ``documents``; None keeps every column of a simple type."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the reader, by Spark's names: header, sep, quote, escape, encoding, multiLine ..."""
    max_chars: int = 1_000_000
    """Longer texts are quarantined as ``too_long``."""
    max_quarantine: float = 0.5
    """Share of bad rows above which the job fails (exit code 1) after ingest."""


@dataclass(frozen=True)
class PartitionConfig:
    """How documents are divided into units of work."""

    column: str | None = None
    """One partition per value of this column (a site, a tenant, a month), which has at most 10,000; None partitions by hash of the text."""
    number: int | None = None
    """Number of hash partitions; None derives it from ``target_documents`` and ``target_characters``."""
    target_documents: int = 25_000
    """Documents per hash partition; a value of ``column`` that has more than twice as many is split into pieces of about this size."""
    target_characters: int = 100_000_000
    """Characters of text per hash partition, likewise: a worker holds a partition's texts in memory. What counts is the whole corpus' mean,
    and identical texts always meet, so that one partition can hold somewhat more."""

    def pieces(self, documents: int, characters: int) -> int:
        """Return how many partitions of at most about the target sizes these make, at least one."""
        return max(1, math.ceil(documents / self.target_documents), math.ceil(characters / self.target_characters))


@dataclass(frozen=True)
class EmbeddingConfig:
    """How documents become vectors."""

    model: str = "all-MiniLM-L6-v2"
    """A sentence-transformers model: packaged name, folder, or hub id."""
    backend: Literal["auto", "torch", "onnx"] = "auto"
    """What computes: PyTorch, or ONNX Runtime, for which the model is exported once a machine. ``auto``: torch."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """``auto``: bfloat16 where the processor or GPU is fast at it, else float32. int8 needs the onnx backend."""
    batch_tokens: int = 4096
    """Greatest number of tokens in a batch, padding included (a GPU's batches are 32 times as large). Changes speed, and vectors in
    their last bits alone: it is in no fingerprint."""
    max_tokens: int | None = None
    """Texts are truncated to this many tokens; None takes the model's own limit."""
    prompt: str = ""
    """Put before every text (models trained with instructions ask for one)."""


@dataclass(frozen=True)
class ClusterConfig:
    """How one partition is reduced and clustered."""

    reduction: str = "none"
    """none, pca, umap, cuml_umap, or the import path of a class with ``fit_transform``."""
    reduction_params: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the reduction, by the names of the class that does it: {n_neighbors: 15, n_components: 5}."""
    algorithm: str = "evoc"
    """evoc, hdbscan, fast_hdbscan, kmeans, cuml_hdbscan, or the import path of a class with ``fit_predict``. EVoC measures angles, which
    say nothing of reduced vectors: where a reduction is named and no algorithm, it is hdbscan."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the algorithm, likewise: {n_clusters: 50}."""
    min_cluster_size: int | None = None
    """Smallest local topic; None derives it from ``topics.min_size`` and the numbers of documents and partitions."""
    seed: int = 42
    """Of whatever is drawn at random: in reductions, algorithms, the pilot's samples and the map."""


@dataclass(frozen=True)
class TopicsConfig:
    """What the finished model should look like."""

    min_size: int = 10
    """Smallest topic, in documents, after merging."""
    number: int | None = None
    """Number of topics; None finds it."""
    similarity: float | None = None
    """Merge topics whose centroids' cosine is at least this; None calibrates the granularity."""
    outliers: float | None = None
    """Greatest share of documents left as outliers (topic -1); None is 1 %. No topic is cut below ``min_size`` for it."""
    rounds: int = 3
    """Rounds of refinement."""
    core: float = 0.5
    """Share of a topic's documents, those nearest to its centre, that its keywords are taken from; at least 30 documents. Less than all
    makes keywords more coherent; 1 takes all, where topics hold several themes (few topics by ``number``) and are to show each."""


@dataclass(frozen=True)
class ZeroshotConfig:
    """Topics that are named before anything is clustered."""

    topics: tuple[str, ...] = ()
    """Their names. Each is embedded with ``embedding.model`` and takes the documents most similar to it; the rest is clustered."""
    min_similarity: float = 0.7
    """Cosine of a document to its best name from which on the name takes it."""


@dataclass(frozen=True)
class TermsConfig:
    """How topics' terms are counted and weighted."""

    ngram_range: tuple[int, int] = (1, 1)
    stop_words: str | tuple[str, ...] | None = "english"
    """english (scikit-learn's list), a list, or None."""
    min_df: int = 1
    """Terms in fewer documents are not counted."""
    lowercase: bool = True
    """Count words that differ in case as one."""
    bm25_weighting: bool = False
    """Weight terms by BM25's inverse frequency in place of c-TF-IDF's: what many topics use weighs less."""
    reduce_frequent_words: bool = False
    """Take the square root of a term's share of its topic, so that its most frequent words weigh less."""
    top_n_words: int = 10
    """Keywords of a topic."""


@dataclass(frozen=True)
class RepresentConfig:
    """How topics are shown."""

    representative_documents: int = 3
    map_documents: int = 10_000
    """Documents placed on the two-dimensional map; 0 for no map. The report draws at most 10,000 of them."""
    aspects: Mapping[str, Any] = field(default_factory=dict)
    """Further descriptions of every topic, by name. Each is a step or a list of steps that run one after another; a step is a name
    (keybert, mmr, pos, llm) or a mapping with ``type`` and parameters: {words: keybert, diverse: [keybert, {type: mmr, diversity: .5}]}"""
    candidate_documents: int = 20
    """Documents of a topic that its representatives are chosen from: the nearest to its centre with distinct texts."""
    diversity: float = 0.1
    """Of the documents that aspects see: 0 takes the nearest, 1 the most unlike each other (maximal marginal relevance)."""


@dataclass(frozen=True)
class LlmConfig:
    """The language model of the aspect ``llm``, its prompt, and its limits."""

    model: str = "smollm2-135m-instruct"
    """A packaged name, folder, hub id, GGUF file, or what a server calls its model."""
    backend: Literal["auto", "transformers", "llama_cpp", "server", "vllm"] = "auto"
    """``auto``: server where ``url`` is given, else transformers, which reads GGUF files too."""
    url: str | None = None
    """Base of an OpenAI-compatible server: http://localhost:8000/v1"""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key. The key itself has no place in a configuration."""
    request: dict[str, Any] = field(default_factory=dict)
    """What a server's requests hold beside or instead of the rest, null to leave it out: {max_tokens: null, max_completion_tokens: 99}"""
    quantization: Literal["nf4", "none"] = "nf4"
    """nf4: 4-bit weights by bitsandbytes, doubly quantised. none: weights of ``dtype``."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """What the backends transformers and vllm compute in. ``auto``: bfloat16; of vllm the weights' own type. With quantization=none and
    float32, an answer does not depend on the prompts that it is answered with; in bfloat16 it can. On processors bitsandbytes may use
    bfloat16 all the same."""
    prompt: str | None = None
    """The question about one topic, or a file that holds it; [DOCUMENTS] and [KEYWORDS] are filled in. None takes the packaged one."""
    system_prompt: str | None = None
    """What the model is told first. None takes the packaged one, an empty text none."""
    template: Literal["auto", "llama2", "plain"] = "auto"
    """How a conversation is put into one text. ``auto``: the model's own chat template, plain where it has none."""
    documents: int = 5
    """Documents in the prompt."""
    keywords: int = 10
    """Keywords in the prompt."""
    doc_length: int | None = 100
    """Longest document in the prompt, counted in units of ``tokenizer``; None for whole documents."""
    tokenizer: Literal["char", "whitespace", "vectorizer", "model"] = "whitespace"
    """What ``doc_length`` counts: characters, words, terms as c-TF-IDF counts them, or the model's tokens."""
    candidates: int = 3
    """Labels asked for per topic. Beyond one, they are checked: the one is kept that best finds its own topic among all topics."""
    place: int = 1
    """Where a checked label has to find its own topic to be kept: the best place, or so far down; as well as its keywords do is enough."""
    temperature: float = 0.0
    """0 takes the most probable token always (greedy); above, tokens are drawn."""
    repetition_penalty: float = 1.0
    max_new_tokens: int = 32
    """Tokens an answer may have. It ends at its first line that is more than an announcement: nothing after that is used."""
    seed: int = 42
    batch_size: int | None = None
    """Prompts in one pass of the model, where memory allows; None takes 64 on a GPU, 8 elsewhere. More is faster, and can change an
    answer's last bits."""
    actors: int | None = None
    """Workers; None derives them from GPUs or memory and the model's size."""
    gpus_per_actor: float | None = None
    """A fraction or a whole number, 0 for the processor; None derives it from the model's size and ``gpu_memory``."""
    gpu_memory: float | None = None
    """GiB of one GPU; None asks the GPU."""
    concurrency: int = 8
    """Requests a server is sent at once."""
    attempts: int = 5
    """Times a request is tried when a server does not answer, or says that it is busy."""
    timeout: float = 120.0
    """Seconds one request may take."""
    max_topics: int | None = None
    """Most topics that are labelled by the model, the largest first; the others get their keywords. Likewise the next two."""
    max_tokens: int | None = None
    """Most tokens, read and written, of one run."""
    max_seconds: float | None = None
    """Most seconds of one run."""


@dataclass(frozen=True)
class FinetuneConfig:
    """How an embedding model is trained. None in a setting takes the recipe's own."""

    steps: tuple[Any, ...] = ()
    """Trainings, one after another. A step is a recipe's name, a mapping ({recipe: mnr, input: pairs.csv, columns: {anchor: title}},
    with the recipe's options and any of epochs, batch_size, learning_rate, warmup, max_steps), or a list of such mappings, which are
    trained together, each batch from one of them."""
    base: str = "all-MiniLM-L6-v2"
    """The model to start from: packaged name, folder, hub id, or a plain language model."""
    pooling: Literal["mean", "max", "cls"] | None = None
    """How token vectors become one; None keeps the base's, or takes the recipe's for a base that has none."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """What the model's vectors are trained and compared by; with dot they are not normalised."""
    layers: int | None = None
    """Only the base's first layers; None keeps all."""
    freeze: int = 0
    """Layers, from the first, that are not trained; the token embeddings neither, where it is 1 or more."""
    dropout: float | None = None
    """None keeps the base's."""
    max_tokens: int | None = None
    """Texts are truncated to this many tokens; None takes the base's limit."""
    lora: Mapping[str, Any] = field(default_factory=dict)
    """Train low-rank additions instead of the weights, merged into them at the end: {r: 16, lora_alpha: 32, target_modules: [...]}."""
    epochs: float | None = None
    batch_size: int | None = None
    """Examples a batch, over all workers together; a step is ``accumulate`` batches."""
    learning_rate: float | None = None
    warmup: float | None = None
    max_steps: int | None = None
    """Training ends after so many steps, whatever ``epochs`` says."""
    accumulate: int = 1
    """Batches of which the gradients are averaged for one step."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the products; weights are float32. ``auto``: bfloat16 on a GPU, and on processors that multiply it faster; else float32."""
    deepspeed: str | None = None
    """A preset (deepspeed-zero1, deepspeed-zero2) or DeepSpeed's own JSON file."""
    workers: int | None = None
    """Processes that train together; None takes as many as there are GPUs and ``batch_size`` can be divided by, and one without a GPU."""
    checkpoint_steps: int | None = None
    """Steps between checkpoints; None writes about ten in all, the first after at most 200."""
    documents: int | None = 100_000
    """Most documents of a store that are trained on, chosen by a hash of ``seed`` and text; None takes all."""
    held_out: float = 0.1
    """Share of the labelled input that is not trained on but judged with, where no other judge is named."""
    judges: tuple[str, ...] = ()
    """What base and model are judged by, as `topicscale evaluate --task` takes them; () finds what the data allow."""
    measure: str | None = None
    """The measure that decides whether a model is published (topics.npmi, sts.spearman ...); None takes the first judge's own."""
    margin: float = 0.0
    """A model must be better than its base by more than this."""
    seed: int = 42


POWER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
"""2e-5, which YAML 1.1 takes for a text (see :func:`numbers`)."""
MASTERS = ("local", "spark://", "yarn", "k8s://")
"""How the address of a Spark master begins."""


@dataclass(frozen=True)
class RayConfig:
    """Where the Python work runs."""

    address: str | None = None
    """A running cluster; None takes RAY_ADDRESS, which Ray's jobs have. Without either one starts on this machine, on loopback only."""
    actors: int | None = None
    """Worker processes; None derives them from the processors or GPUs."""
    cpus_per_actor: int | None = None
    """Processors, and threads, of a worker; None takes as many as all workers can have each. Where ``actors`` is left out, too, there is a
    worker for every 4 of them, or for every GPU."""
    gpus_per_actor: float | None = None
    """Fractions allowed; None takes a whole GPU where there is one."""
    attempts: int = 3
    """Times a unit is tried when its worker dies."""
    timeout: float = 300.0
    """Seconds to wait for the cluster to give what was asked for."""

    @property
    def where(self) -> str | None:
        """The cluster that is meant; None for this machine."""
        named = os.environ.get("RAY_ADDRESS", "")
        return self.address or (None if named.startswith("http") else named) or None  # http: the job API's, which cannot be joined


@dataclass(frozen=True)
class SparkConfig:
    """Where the JVM work runs."""

    master: str | None = None
    """A Spark master; None takes the one that spark-submit was given or MASTER names, and without it all processors of this machine."""
    remote: str | None = None
    """A Spark Connect address (sc://...), instead of a master; None takes SPARK_REMOTE. Its token: SPARK_CONNECT_AUTHENTICATE_TOKEN."""
    driver_memory: str = "2g"
    """Memory of the JVM that is started here, as Spark writes it; without a master it does all of Spark's work."""
    conf: Mapping[str, Any] = field(default_factory=dict)
    """Any other setting of Spark, by its name: {spark.sql.shuffle.partitions: 200}"""

    @property
    def where(self) -> str | None:
        """The master or Spark Connect address that is meant; None for this machine, or for the JVM that spark-submit started."""
        master = os.environ.get("MASTER", "")  # others give the name other meanings
        named = os.environ.get("SPARK_REMOTE") or (master if master.startswith(MASTERS) else None)
        return self.remote or self.master or named or None

    @property
    def connects(self) -> bool:
        """Whether Spark runs elsewhere, with a Java of its own."""
        return (self.where or "").startswith("sc://")


@dataclass(frozen=True)
class StorageConfig:
    """How an object store (s3://, gs://, abfss://) is reached, by every engine: see docs/storage.md.

    Credentials are never here: each engine finds them in its environment.
    """

    endpoint: str | None = None
    """Address of a server other than the cloud's own (https://...); None takes the variable AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL
    for s3://, else the cloud's."""
    region: str | None = None
    """None takes AWS_REGION or AWS_DEFAULT_REGION; with an endpoint us-east-1. Without any, each engine looks on its own (a profile, the
    machine) and else takes a default: name the bucket's."""
    path_style: bool | None = None
    """The bucket is in the path of an address and not in the host's name. None: with an endpoint."""
    allow_http: bool = False
    """Let an endpoint of another machine be reached without encryption."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of delta-rs, by its names (timeout, aws_server_side_encryption ...). Spark's are in ``spark.conf``
    (spark.hadoop.fs.s3a...)."""


@dataclass(frozen=True)
class Config:
    """The whole tree."""

    input: InputConfig = field(default_factory=InputConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    topics: TopicsConfig = field(default_factory=TopicsConfig)
    zeroshot: ZeroshotConfig = field(default_factory=ZeroshotConfig)
    terms: TermsConfig = field(default_factory=TermsConfig)
    represent: RepresentConfig = field(default_factory=RepresentConfig)
    llm: LlmConfig = field(default_factory=LlmConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    spark: SparkConfig = field(default_factory=SparkConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)

    def __post_init__(self) -> None:
        _validate(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the tree as plain dictionaries and lists, as JSON and YAML hold them."""
        result = _plain(self)
        assert isinstance(result, dict)
        return result

    def without_places(self) -> Config:
        """Return the tree without the addresses of engines and the sizes of workers: where a job ran is no property of its store."""
        ray = dataclasses.replace(self.ray, address=None, actors=None, cpus_per_actor=None, gpus_per_actor=None)
        return dataclasses.replace(self, ray=ray, spark=dataclasses.replace(self.spark, master=None, remote=None))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Return the configuration that ``values`` describes; what is left out takes its default.

        Raises
        ------
        ConfigError
            A key is unknown (the nearest known key is named) or a value has the wrong type or is out of range.
        """
        built = _build(cls, values, "")
        assert isinstance(built, cls)
        return built


def load(
    *,
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Config:
    """Return the configuration from ``base``, then a YAML file or preset name, then ``values``, then ``key.path=value`` overrides.

    Raises
    ------
    ConfigError
        The file is missing or is no YAML mapping, a key is unknown, or a value does not fit.
    """
    merged: dict[str, Any] = {}
    layers = [base or {}, {} if file is None else _read_yaml(Path(file)), values or {}, _read_overrides(overrides)]
    for layer in layers:
        _forget_parameters(merged, layer)
        _merge(merged, layer)
    cluster = merged.get("cluster")
    if isinstance(cluster, Mapping) and cluster.get("reduction", "none") != "none":
        merged["cluster"] = {"algorithm": "hdbscan", **cluster}
    return Config.from_dict(merged)


def _read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in overrides:
        key, sep, value = item.partition("=")
        if not sep or not key.strip():
            raise ConfigError(f"An override must be of the form key.path=value. Got {item!r} instead.")
        nested: Any = _parse(value, item)
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        _merge(found, nested)
    return found


def _forget_parameters(merged: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Take parameters away that were meant for another algorithm than the one a layer chooses."""
    old, new = merged.get("cluster"), layer.get("cluster")
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return
    for kind, parameters in (("algorithm", "params"), ("reduction", "reduction_params")):
        if new.get(kind) not in (None, old.get(kind, getattr(ClusterConfig, kind))):
            old = {key: value for key, value in old.items() if key != parameters}
    merged["cluster"] = old


def fingerprint(*parts: Any) -> str:
    """Return a digest (32 hexadecimal digits) of JSON-representable parts, dataclasses included; order matters."""
    text = json.dumps([_plain(part) for part in parts], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def numbers(value: Any) -> Any:
    """Return a value, or all that a mapping or list holds, with the texts that are powers of ten (2e-5) as numbers."""
    if isinstance(value, Mapping):
        return {key: numbers(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [numbers(inner) for inner in value]
    if not isinstance(value, str) or not POWER.fullmatch(value):
        return value
    number = float(value)
    return int(number) if number.is_integer() else number


def option_text(value: object) -> str:
    """Return a value as the options of Spark and delta-rs spell it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def presets() -> dict[str, Path]:
    """Return the packaged presets by name."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):  # in the wheel, in a checkout
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def _read_yaml(path: Path) -> dict[str, Any]:
    known = presets()
    if not path.is_file() and str(path) in known:
        path = known[str(path)]
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = ", ".join(known) or "none"
        raise ConfigError(f"There is no configuration file {str(path)!r}, and no preset of that name. Presets: {names}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"Configuration file {str(path)!r} cannot be read: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"Configuration file {str(path)!r} must hold a mapping. Got {type(content).__name__} instead.")
    # a section whose every line is a comment says nothing
    return {key: {} if section is None else section for key, section in content.items()}


def _parse(value: str, item: str) -> Any:
    if len(value) == 1 and not value.isalnum() and value != "~":
        return value  # a separator or a quote, of which YAML would take most for its own
    try:
        return yaml.safe_load(value) if value.strip() else None
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of {item!r} is not valid YAML: {error}") from error


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), Mapping):
            nested = dict(into[key])
            for name, inner in value.items():
                if inner == {}:  # says that there is to be nothing: merged, it would change nothing
                    nested.pop(name, None)
            _merge(nested, value)
            into[key] = nested
        else:
            into[key] = value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _build(cls: type, values: Any, where: str) -> Any:
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'The configuration'} must be a mapping. Got {values!r} instead.")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    arguments = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in known:
            if cls is StorageConfig and secretive(str(key)):
                raise ConfigError(f"{path} would hold a credential. {_ENVIRONMENT}")
            raise ConfigError(f"Unknown configuration key {path!r}. {_nearest(path, str(key), known, where)}")
        hint = hints[key]
        nested = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        arguments[key] = _build(hint, value, path) if nested else _coerce(hint, value, path)
    return cls(**arguments)


def _dotted(values: Mapping[Any, Any], at: str = "") -> dict[str, Any]:
    """Return a mapping of mappings as one, with keys joined by dots: ``--set spark.conf.spark.sql.shuffle.partitions=8``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _dotted(value, f"{at}{key}.") if isinstance(value, Mapping) else {f"{at}{key}": value}
    return found


def _nearest(path: str, key: str, known: list[str], where: str) -> str:
    everywhere = [f"{section}.{name}" for section, values in _plain(Config()).items() for name in values]
    close = difflib.get_close_matches(key, known, n=1) or difflib.get_close_matches(path, everywhere, n=1, cutoff=0.5)
    if close:
        name = close[0] if "." in close[0] or not where else f"{where}.{close[0]}"
        return f"Did you mean {name!r}?"
    return f"Known keys here: {', '.join(known)}."


def _coerce(hint: Any, value: Any, path: str) -> Any:
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):  # a number, or an array of them
        value = value.tolist()
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _holdable(value, path)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for option in args:
            if option is type(None):
                continue
            try:
                return _coerce(option, value, path)
            except ConfigError as error:
                last = error
        raise last
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{path} must be one of {', '.join(map(str, args))}. Got {value!r} instead.")
        return value
    if origin is tuple:
        item = args[0]
        if isinstance(value, str) and item is str:
            value = [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise ConfigError(f"{path} must be a list. Got {value!r} instead.")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise ConfigError(f"{path} must have {len(args)} items. Got {value!r} instead.")
        return tuple(_coerce(item, part, path) for part in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} must be a mapping. Got {value!r} instead.")
        return dict(_holdable(_dotted(value) if path in _DOTTED else value, path))
    if hint is bool and isinstance(value, bool):
        return value
    if hint in (int, float) and isinstance(value, str) and POWER.fullmatch(value):
        value = float(value)
    if hint is int and isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer():
        return int(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if hint is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{path} must be of type {getattr(hint, '__name__', hint)}. Got {value!r} instead.")


def _holdable(value: Any, path: str) -> Any:
    try:
        json.dumps(value)  # YAML also has dates, sets and bytes, which no fingerprint or table can hold
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} must hold numbers, texts, lists and mappings. Got {value!r} instead: {error}.") from error
    return value


def _validate(config: Config) -> None:
    def check(ok: bool, path: str, rule: str) -> None:
        if not ok:
            section, _, key = path.partition(".")
            raise ConfigError(f"{path} must be {rule}. Got {getattr(getattr(config, section), key)!r} instead.")

    c = config
    check(len(c.input.text_column) > 0, "input.text_column", "at least one column")
    check(c.input.max_chars > 0, "input.max_chars", "above 0")
    check(0 <= c.input.max_quarantine <= 1, "input.max_quarantine", "between 0 and 1")
    check(c.partition.number is None or c.partition.number > 0, "partition.number", "above 0")
    check(c.partition.target_documents > 0, "partition.target_documents", "above 0")
    check(c.partition.target_characters > 0, "partition.target_characters", "above 0")
    check(c.embedding.batch_tokens > 0, "embedding.batch_tokens", "above 0")
    check(c.embedding.max_tokens is None or c.embedding.max_tokens > 2, "embedding.max_tokens", "above 2")
    check(c.topics.min_size > 1, "topics.min_size", "above 1")
    check(c.topics.number is None or c.topics.number > 0, "topics.number", "above 0")
    check(c.topics.similarity is None or -1 <= c.topics.similarity <= 1, "topics.similarity", "between -1 and 1")
    check(c.topics.outliers is None or 0 <= c.topics.outliers < 1, "topics.outliers", "at least 0 and below 1")
    check(c.topics.rounds >= 0, "topics.rounds", "at least 0")
    check(0 < c.topics.core <= 1, "topics.core", "above 0 and at most 1")
    check(c.cluster.min_cluster_size is None or c.cluster.min_cluster_size > 1, "cluster.min_cluster_size", "above 1")
    names = [name.strip() for name in c.zeroshot.topics]
    fit = all(name and name.isprintable() and len(name) <= NAME_CHARS for name in names) and len(set(names)) == len(names)
    check(fit, "zeroshot.topics", f"distinct names, each one line of 1 to {NAME_CHARS} characters")
    check(0 < c.zeroshot.min_similarity <= 1, "zeroshot.min_similarity", "above 0 and at most 1")
    check(
        c.topics.number is None or c.topics.number > len(names),
        "topics.number",
        f"above the {len(names)} names of zeroshot.topics, which it counts too",
    )
    low, high = c.terms.ngram_range
    check(1 <= low <= high <= 5, "terms.ngram_range", "two numbers, 1 <= low <= high <= 5")
    check(
        c.terms.stop_words is None or isinstance(c.terms.stop_words, tuple) or c.terms.stop_words == "english",
        "terms.stop_words",
        "english, a list, or null",
    )
    check(c.terms.min_df >= 1, "terms.min_df", "at least 1")
    check(c.terms.top_n_words >= 1, "terms.top_n_words", "at least 1")
    check(c.represent.representative_documents >= 0, "represent.representative_documents", "at least 0")
    check(c.represent.map_documents >= 0, "represent.map_documents", "at least 0")
    check(c.represent.candidate_documents >= 1, "represent.candidate_documents", "at least 1")
    check(0 <= c.represent.diversity <= 1, "represent.diversity", "between 0 and 1")
    check(c.llm.documents >= 0, "llm.documents", "at least 0")
    check(c.llm.keywords >= 0, "llm.keywords", "at least 0")
    check(c.llm.documents + c.llm.keywords > 0, "llm.keywords", "above 0 when llm.documents is 0")
    check(c.llm.temperature >= 0, "llm.temperature", "at least 0")
    check(c.llm.repetition_penalty > 0, "llm.repetition_penalty", "above 0")
    for key in ("candidates", "place", "max_new_tokens", "concurrency", "attempts", "timeout"):
        check(getattr(c.llm, key) > 0, f"llm.{key}", "above 0")
    for key in ("doc_length", "batch_size", "actors", "gpu_memory", "max_topics", "max_tokens", "max_seconds"):
        value = getattr(c.llm, key)
        check(value is None or value > 0, f"llm.{key}", "above 0")
    share = c.llm.gpus_per_actor
    whole = share is None or 0 <= share <= 1 or (share > 1 and share.is_integer())
    check(whole, "llm.gpus_per_actor", "a fraction up to 1, or a whole number; 0 for the processor")
    if not _VARIABLE.fullmatch(c.llm.api_key_env):
        raise ConfigError(
            "llm.api_key_env must be the name of an environment variable, in capitals. What it holds is no such name, and is not shown: it "
            "may be the key itself. Put the key in a variable, and give the variable's name."
        )
    own = sorted({"messages", "model", "stream"} & set(c.llm.request))
    check(not own, "llm.request", f"without {', '.join(own)}, which topicscale sets itself")
    if c.llm.url is not None and set("@?#") & set(c.llm.url):
        raise ConfigError(
            f"llm.url must hold no user, no password and no query (it is not shown). Give a key by the variable {c.llm.api_key_env}."
        )
    fit = c.llm.url is None or c.llm.url.startswith(("http://", "https://"))
    check(fit, "llm.url", "an address that begins with http:// or https://")
    check(c.llm.backend != "server" or c.llm.url is not None, "llm.url", "given when llm.backend is server")
    for key in ("layers", "max_tokens", "epochs", "batch_size", "learning_rate", "max_steps", "workers", "checkpoint_steps", "documents"):
        value = getattr(c.finetune, key)
        check(value is None or value > 0, f"finetune.{key}", "above 0")
    check(c.finetune.freeze >= 0, "finetune.freeze", "at least 0")
    check(c.finetune.accumulate > 0, "finetune.accumulate", "above 0")
    for key in ("warmup", "dropout"):
        value = getattr(c.finetune, key)
        check(value is None or 0 <= value < 1, f"finetune.{key}", "at least 0 and below 1")
    check(0 <= c.finetune.held_out < 1, "finetune.held_out", "at least 0 and below 1")
    check(c.ray.actors is None or c.ray.actors > 0, "ray.actors", "above 0")
    check(c.ray.cpus_per_actor is None or c.ray.cpus_per_actor > 0, "ray.cpus_per_actor", "above 0")
    check(c.ray.gpus_per_actor is None or c.ray.gpus_per_actor >= 0, "ray.gpus_per_actor", "at least 0")
    check(c.ray.attempts > 0, "ray.attempts", "above 0")
    check(c.ray.timeout > 0, "ray.timeout", "above 0")
    check(c.partition.column is None or c.partition.number is None, "partition.number", "left out when partition.column is given")
    _refuse_secrets(c)
    check_endpoint(c.storage, "storage.endpoint")


def rooted(config: Config) -> Config:
    """Return the configuration with an embedding model that is a folder here by its whole path: it is kept, and read from elsewhere."""
    path = os.path.expanduser(config.embedding.model)
    if not os.path.isdir(path):
        return config
    return replace(config, embedding=replace(config.embedding, model=os.path.realpath(path)))


def secretive(key: str) -> bool:
    """Return whether a setting of that name holds a credential."""
    return SECRET.search(key) is not None and not key.lower().endswith((".provider", ".provider.type", "file", "kms_key_id"))


def _refuse_secrets(config: Config) -> None:
    held = {f"storage.options.{key}": key for key in config.storage.options}
    held |= {f"llm.request.{path}": key for path, key in _keys(config.llm.request) if not key.lower().endswith(_COUNTS)}
    held |= {f"spark.conf.{key}": key for key in config.spark.conf if not str(key).startswith(_REFERENCES)}
    for path, key in held.items():
        if secretive(str(key)):  # its value is not shown
            raise ConfigError(f"{path} would hold a credential, and configurations are stored. {_ENVIRONMENT}")
    for key in ("remote", "master"):
        if "token=" in (getattr(config.spark, key) or ""):
            raise ConfigError(f"spark.{key} must hold no token (it is not shown). {_ENVIRONMENT}")


def _keys(value: Any, path: str = "", *, names: bool = True) -> Iterator[tuple[str, str]]:
    """Yield what is named in a mapping and in those within it and has a value that may be a credential: the path to it, and its name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if names and inner is not None and not isinstance(inner, bool):
                # a header of that name holds one
                yield path + str(key), "token" if str(key).lower().endswith("authorization") else str(key)
            # what a JSON schema calls its properties is no setting
            yield from _keys(inner, f"{path}{key}.", names=key != "properties")
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _keys(inner, path)


def check_endpoint(storage: StorageConfig, name: str) -> None:
    """Raise ConfigError unless the endpoint, which came from the setting or variable ``name``, is one that may be used."""
    if storage.endpoint is None:
        return
    parts = urllib.parse.urlsplit(storage.endpoint)
    if "@" in parts.netloc:
        raise ConfigError(f"{name} must hold no user and no password (it is not shown). {_ENVIRONMENT}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{name} must be an address that begins with http:// or https://. Got {storage.endpoint!r} instead.")
    if parts.scheme == "http" and not storage.allow_http and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(f"{name} must begin with https://, or storage.allow_http must be true. Got {storage.endpoint!r} instead.")


def storage_from_environment(storage: StorageConfig) -> StorageConfig:
    """Return how S3 is reached, with what ``storage`` leaves open taken from the variables that all its clients read.

    Raises
    ------
    ConfigError
        The variable names an address that may not be used.
    """
    changes: dict[str, Any] = {}
    for key, names in {"endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), "region": ("AWS_REGION", "AWS_DEFAULT_REGION")}.items():
        if getattr(storage, key) is None:
            changes[key] = next((value for name in names if (value := os.environ.get(name))), None)
    found = dataclasses.replace(storage, **changes)
    check_endpoint(found, "AWS_ENDPOINT_URL" if storage.endpoint is None else "storage.endpoint")
    return found


def cache_folder(kind: str) -> Path:
    """Return the folder in the user's cache (XDG_CACHE_HOME, else ~/.cache) for what is made once a machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "topicscale" / kind


def java_home() -> str | None:
    """Return the folder of the Java that the environment names, as Spark's own scripts read it (JAVA_HOME)."""
    return os.environ.get("JAVA_HOME") or None
