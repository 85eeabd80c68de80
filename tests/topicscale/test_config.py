from pathlib import Path

import pytest

from topicscale import config
from topicscale.config import Config, load, rooted
from topicscale.errors import ConfigError


def test_defaults_survive_a_round_trip() -> None:
    assert Config.from_dict(Config().to_dict()) == Config()


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("embeding.model=x", "'embedding'"),
        ("topics.min_siz=5", "'topics.min_size'"),
        ("cluster.min_topic_size=5", "'cluster.min_cluster_size'"),
        ("spark.driver_mem=1g", "'spark.driver_memory'"),
        ("embedding.max_token=256", "'embedding.max_tokens'"),  # which does not look like a credential
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        load(overrides=[override])


@pytest.mark.parametrize(
    "override",
    [
        "topics.min_size=1",
        "topics.min_size=many",
        "topics.min_size=true",
        "topics.outliers=1.5",
        "topics.similarity=2",
        "input.format=xml",
        "input.text_column=[]",
        "terms.ngram_range=[2, 1]",
        "terms.ngram_range=[1]",
        "terms.stop_words=french",
        "ray.actors=0",
        "cluster.params=[1]",
        "topics=5",
        "topics.min_size",
        "=5",
        "input.options={unclosed",
        "input.options={since: 2024-01-01}",
        "ray.timeout=0",
    ],
)
def test_a_bad_value_is_refused_with_its_value(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(overrides=[override])
    assert "Got" in str(caught.value) or "YAML" in str(caught.value) or "mapping" in str(caught.value)


def test_later_sources_win_and_mappings_merge(tmp_path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("topics: {min_size: 30, rounds: 2}\ncluster: {params: {n_neighbors: 9}}\n")
    built = load(file=file, values={"topics": {"min_size": 40}}, overrides=["cluster.params.metric=cosine", "topics.number="])
    assert (built.topics.min_size, built.topics.rounds, built.topics.number) == (40, 2, None)
    assert built.cluster.params == {"n_neighbors": 9, "metric": "cosine"}


def test_parameters_go_with_the_algorithm_they_were_meant_for(tmp_path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("cluster: {algorithm: hdbscan, params: {metric: l1}, reduction: umap, reduction_params: {n_neighbors: 9}}\n")
    built = load(file=file, overrides=["cluster.params.n_clusters=9", "cluster.algorithm=kmeans"])
    assert (built.cluster.params, built.cluster.reduction_params) == ({"n_clusters": 9}, {"n_neighbors": 9})
    same = load(file=file, values={"cluster": {"algorithm": "hdbscan", "params": {"alpha": 2}}})
    assert same.cluster.params == {"metric": "l1", "alpha": 2}
    # the default's name changes nothing
    file.write_text("cluster: {params: {n_neighbors: 9}}\n")
    assert load(file=file, overrides=[f"cluster.algorithm={load().cluster.algorithm}"]).cluster.params == {"n_neighbors": 9}


def test_reduced_vectors_are_not_clustered_by_angles_unless_that_is_said() -> None:
    assert load(overrides=["cluster.reduction=umap"]).cluster.algorithm == "hdbscan"
    assert load(values={"cluster": {"algorithm": "evoc"}}, overrides=["cluster.reduction=umap"]).cluster.algorithm == "evoc"
    assert load(overrides=["cluster.reduction=none"]).cluster.algorithm == "evoc"


def test_an_empty_mapping_takes_away_what_there_was() -> None:
    base = {"represent": {"aspects": {"words": "keybert"}, "map_documents": 5}}
    built = load(values=base, overrides=["represent.aspects={}"])
    assert (built.represent.aspects, built.represent.map_documents) == ({}, 5)
    assert load(values=base, overrides=["represent={}"]).represent.map_documents == 5


def test_a_section_of_a_file_that_is_all_comments_says_nothing(tmp_path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("represent:\n#  map_documents: 9\nllm:\n")
    held = {"represent": {"aspects": {"words": "keybert"}}, "llm": {"url": "http://localhost:8000/v1"}}
    built = load(file=file, base=held)
    assert (built.represent.aspects, built.llm.url) == ({"words": "keybert"}, "http://localhost:8000/v1")
    file.write_text("embeding:\n")
    with pytest.raises(ConfigError, match="'embedding'"):
        load(file=file)


@pytest.mark.parametrize("character", ["|", ",", ":", "#", "\t", " ", "'", '"', "-", "?"])
def test_one_character_is_what_it_is(character) -> None:
    assert load(overrides=[f"input.options.sep={character}"]).input.options == {"sep": character}


def test_null_is_written_as_yaml_writes_it() -> None:
    for nothing in ("", "~", "null"):
        assert load(overrides=[f"topics.number={nothing}"], values={"topics": {"number": 5}}).topics.number is None


@pytest.mark.parametrize("url", ["https://h/v1?api_key=abc123", "https://h/v1#abc123", "https://me:abc123@h/v1"])
def test_a_servers_address_holds_no_credential(url) -> None:
    with pytest.raises(ConfigError, match="not shown") as caught:
        load(values={"llm": {"url": url}})
    assert "abc123" not in str(caught.value)


def test_what_is_made_once_a_machine_is_in_the_users_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert config.cache_folder("onnx") == tmp_path / "topicscale" / "onnx"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert config.cache_folder("gguf") == Path.home() / ".cache" / "topicscale" / "gguf"


def test_lists_may_be_written_with_commas() -> None:
    assert load(overrides=["input.text_column=title, body"]).input.text_column == ("title", "body")


def test_every_preset_loads() -> None:
    for path in config.presets().values():
        load(file=path)


def test_a_missing_file_names_the_presets() -> None:
    with pytest.raises(ConfigError, match="bertopic"):
        load(file="nowhere.yaml")


def test_a_file_that_is_no_mapping_is_refused(tmp_path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="mapping"):
        load(file=file)


def test_fingerprints_depend_on_content_alone() -> None:
    assert config.fingerprint({"a": 1, "b": (1, 2)}) == config.fingerprint({"b": [1, 2], "a": 1})
    assert config.fingerprint(Config()) != config.fingerprint(load(overrides=["topics.min_size=11"]))


@pytest.mark.parametrize(
    "override",
    [
        "spark.conf={spark.authenticate.secret: abc123}",
        "spark.conf.spark.authenticate.secret=abc123",
        "storage.options.aws.secret_access_key=abc123",
        "spark.conf={spark.kubernetes.authenticate.oauthToken: abc123}",
        "spark.remote=sc://host:15002/;token=abc123",
    ],
)
def test_a_configuration_holds_no_secret(override) -> None:
    with pytest.raises(ConfigError, match="environment alone") as caught:
        load(overrides=[override])
    assert "abc123" not in str(caught.value)


def test_settings_of_spark_may_be_given_by_their_dotted_names() -> None:
    conf = load(values={"spark": {"conf": {"spark.sql.shuffle.partitions": 200}}}, overrides=["spark.conf.spark.sql.shuffle.partitions=8"])
    assert conf.spark.conf == {"spark.sql.shuffle.partitions": 8}


def test_numbers_may_be_powers_of_ten() -> None:
    found = load(overrides=["finetune.learning_rate=2e-5", "partition.target_documents=1e6", "llm.request={max_tokens: 1e3}"])
    assert (found.finetune.learning_rate, found.partition.target_documents) == (2e-5, 1_000_000)
    with pytest.raises(ConfigError, match=r"target_documents must be .*int"):
        load(overrides=["partition.target_documents=1e-6"])


def test_names_of_secrets_are_no_secrets() -> None:
    conf = "{spark.authenticate.secret.file: /etc/s, spark.kubernetes.driver.secretKeyRef.TOKEN: name:key, spark.redaction.regex: secret}"
    assert len(load(overrides=[f"spark.conf={conf}"]).spark.conf) == 3


def test_where_a_job_ran_is_not_kept() -> None:
    held = load(overrides=["ray.address=head:6379", "spark.remote=sc://host:15002", "ray.actors=3"]).without_places()
    assert (held.ray.address, held.spark.remote, held.ray.actors) == (None, None, None)


def test_engines_are_where_the_environment_says(monkeypatch) -> None:
    for name in ("RAY_ADDRESS", "SPARK_REMOTE", "MASTER"):
        monkeypatch.delenv(name, raising=False)
    config = Config()
    assert (config.ray.where, config.spark.where, config.spark.connects) == (None, None, False)
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")  # the job API's, which cannot be joined
    monkeypatch.setenv("MASTER", "something else")
    assert (config.ray.where, config.spark.where) == (None, None)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setenv("MASTER", "spark://host:7077")
    assert (config.ray.where, config.spark.where) == ("head:6379", "spark://host:7077")
    monkeypatch.setenv("SPARK_REMOTE", "sc://host:15002")
    assert config.spark.connects
    assert load(overrides=["ray.address=mine:1", "spark.master=yarn"]).spark.where == "yarn"


def test_a_folder_here_is_kept_by_its_whole_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minilm").mkdir()
    assert rooted(load(values={"embedding": {"model": "minilm/"}})).embedding.model == str(tmp_path / "minilm")
    for name in ("BAAI/bge-small-en-v1.5", "~nobody-of-this-name/model", Config().embedding.model):
        assert rooted(load(values={"embedding": {"model": name}})).embedding.model == name


def test_keys_within_a_request_are_looked_at_too() -> None:
    schema = {"json_schema": {"properties": {"token": {"type": "string"}}}}
    request = {"stop_token_ids": [2], "max_tokens": None, "thinking_token_budget": 9, "response_format": schema}
    assert load(values={"llm": {"request": request}}).llm.request == request
    load(values={"spark": {"conf": {"spark.hadoop.hadoop.security.authorization": "true"}}})
    nested = ({"extra_body": {"api_key": "x"}}, {"headers": [{"Proxy-Authorization": "Bearer x"}]}, {"credentials": {"user": "u"}})
    for held in (*nested, {"token": "x"}, {"password": 5}, {"api_key": ["x"]}):
        with pytest.raises(ConfigError, match=r"would hold a credential"):
            load(values={"llm": {"request": held}})
