"""Addresses, and what one block of settings tells the engines."""

import pytest

from topicscale import storage
from topicscale.config import Config, StorageConfig, load
from topicscale.errors import ConfigError, RequestError


@pytest.fixture(autouse=True)
def _ours(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AZURE_FEDERATED_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    before = storage.settings()
    yield
    storage.use(before)


def test_addresses_are_spelt_in_one_way() -> None:
    assert str(storage.address("s3a://bucket/a/b/")) == "s3://bucket/a/b"
    assert str(storage.address("gs://bucket")) == "gs://bucket"
    assert storage.address("data/s3/x") is None
    assert storage.local_path("s3://bucket/a") is None
    assert storage.schemes(["s3a://b/x", "plain/path", "gs://b/y", "s3://b/z"]) == ("gs", "s3")


@pytest.mark.parametrize("uri", ["s3://", "s3:///x", "s3://bucket/a//b", "s3://bucket/../x", "abfss://container/x"])
def test_what_is_no_place_is_refused(uri) -> None:
    with pytest.raises(RequestError, match="must"):
        storage.address(uri)


@pytest.mark.parametrize("uri", ["s3://KEY:SECRET@bucket/x", "s3a://KEY:SEC/RET@bucket/x", "gs://SECRET@bucket", "s3://SECRET@bucket//x"])
def test_credentials_in_an_address_are_refused_and_not_repeated(uri) -> None:
    with pytest.raises(RequestError, match="environment alone") as told:
        storage.address(uri)
    assert "SEC" not in str(told.value)


def test_the_engines_are_told_the_same() -> None:
    storage.use(StorageConfig(endpoint="https://minio.example:9000", region="eu-west-1"))
    delta, hadoop = storage.delta_options("s3://bucket/store"), storage.hadoop_settings(["s3"])
    assert delta is not None
    assert delta["aws_endpoint_url"] == hadoop["spark.hadoop.fs.s3a.endpoint"] == "https://minio.example:9000"
    assert delta["aws_region"] == hadoop["spark.hadoop.fs.s3a.endpoint.region"] == "eu-west-1"
    assert delta["aws_virtual_hosted_style_request"] == "false"
    assert hadoop["spark.hadoop.fs.s3a.path.style.access"] == "true"
    assert storage.delta_options("local/store") is None
    assert storage.hadoop_settings([]) == {}


def test_delta_is_told_the_bucket_before_a_host_of_ones_own() -> None:
    storage.use(StorageConfig(endpoint="https://s3.eu-central-1.amazonaws.com", path_style=False))
    delta, hadoop = storage.delta_options("s3://bucket/store"), storage.hadoop_settings(["s3"])
    assert delta is not None
    assert (delta["aws_endpoint_url"], delta["aws_virtual_hosted_style_request"]) == (
        "https://bucket.s3.eu-central-1.amazonaws.com",
        "true",
    )
    assert hadoop["spark.hadoop.fs.s3a.endpoint"] == "https://s3.eu-central-1.amazonaws.com"


def test_what_is_left_open_comes_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    monkeypatch.setenv("AWS_REGION", "eu-west-2")
    found = storage.delta_options("s3://bucket/store")
    assert found is not None
    assert (found["aws_endpoint_url"], found["aws_allow_http"], found["aws_region"]) == ("http://127.0.0.1:9000", "true", "eu-west-2")


@pytest.mark.parametrize(
    "override",
    [
        "storage.access_key=AKIA-VALUE",
        "storage.options={aws_secret_access_key: AKIA-VALUE}",
        "storage.options={azure_storage_account_key: AKIA-VALUE}",
        "storage.options={google_service_account: AKIA-VALUE}",
        "storage.options={azure_storage_sas_key: AKIA-VALUE}",
        "storage.options={azure_storage_master_key: AKIA-VALUE}",
        "spark.conf={spark.hadoop.fs.s3a.secret.key: AKIA-VALUE}",
        "spark.conf={spark.hadoop.fs.azure.account.key.x.dfs.core.windows.net: AKIA-VALUE}",
        "storage.endpoint=https://AKIA-VALUE:word@host",
    ],
)
def test_credentials_in_a_configuration_are_refused_and_not_repeated(override) -> None:
    with pytest.raises(ConfigError, match="environment alone") as told:
        load(overrides=[override])
    assert "AKIA" not in str(told.value)


def test_settings_that_only_sound_like_credentials_are_taken() -> None:
    found = load(
        overrides=[
            "storage.options={aws_sse_kms_key_id: alias/x}",
            "spark.conf={spark.hadoop.fs.s3a.aws.credentials.provider: org.example.Provider}",
        ]
    )
    assert found.storage.options == {"aws_sse_kms_key_id": "alias/x"}


def test_plain_http_to_another_machine_must_be_allowed(monkeypatch) -> None:
    with pytest.raises(ConfigError, match="allow_http"):
        load(overrides=["storage.endpoint=http://minio.example:9000"])
    load(overrides=["storage.endpoint=http://minio.example:9000", "storage.allow_http=true"])
    load(overrides=["storage.endpoint=http://127.0.0.1:9000"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio.example:9000")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL must begin with https"):
        storage.delta_options("s3://bucket/store")


def test_how_a_store_is_reached_changes_no_fingerprint() -> None:
    one, other = Config().to_dict(), load(overrides=["storage.region=eu-west-1"]).to_dict()
    assert {k: v for k, v in one.items() if k != "storage"} == {k: v for k, v in other.items() if k != "storage"}


def test_a_configuration_without_storage_leaves_what_was_said_before(monkeypatch) -> None:
    monkeypatch.setattr(storage, "_settings", StorageConfig())
    storage.use(StorageConfig(endpoint="http://127.0.0.1:9000"))
    storage.adopt(Config().storage)
    assert storage.settings().endpoint == "http://127.0.0.1:9000"
    storage.adopt(StorageConfig(endpoint="http://127.0.0.1:9001"))
    assert storage.settings().endpoint == "http://127.0.0.1:9001"
