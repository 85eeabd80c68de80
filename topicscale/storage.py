"""Addresses of object stores, and one block of settings told to all that reach them: delta-rs, pyarrow and Spark.

Credentials are in none of it. Each engine looks for them in its own environment: variables, a profile, the role of a
machine or a service account.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topicscale.config import StorageConfig, option_text, storage_from_environment
from topicscale.errors import RequestError

if TYPE_CHECKING:
    import pyarrow.fs as pafs

SCHEMES = ("s3", "gs", "abfss")
_SAME = {"s3a": "s3", "abfs": "abfss"}
_ATTEMPTS = 10
"""Times that pyarrow asks a server which refuses or does not answer, as delta-rs does."""
_settings = StorageConfig()


@dataclass(frozen=True)
class Address:
    """A place in an object store."""

    scheme: str
    bucket: str
    """The bucket; of Azure ``container@account.dfs.core.windows.net``."""
    key: str
    """Without slashes at its ends."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.key}" if self.key else "")

    @property
    def inside(self) -> str:
        """The path in a file system of pyarrow's."""
        return f"{self.bucket.partition('@')[0]}/{self.key}".rstrip("/")

    @property
    def account(self) -> str:
        """The storage account of Azure."""
        return self.bucket.partition("@")[2].partition(".")[0]


def use(settings: StorageConfig) -> None:
    """Have this process reach object stores by these settings from now on."""
    global _settings
    _settings = settings


def adopt(settings: StorageConfig) -> None:
    """Use the settings of a configuration, unless it has none: then those that were given before count."""
    if settings != StorageConfig():
        use(settings)


def settings() -> StorageConfig:
    """Return how this process reaches object stores."""
    return _settings


def address(uri: str) -> Address | None:
    """Return the place in an object store that a URI names, None where it is no such URI.

    Raises
    ------
    RequestError
        It names no bucket, or holds a credential.
    """
    scheme, sep, rest = uri.partition("://")
    scheme = _SAME.get(scheme.lower(), scheme.lower())
    if not sep or scheme not in SCHEMES:
        return None
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise RequestError(f"An address must name a bucket: {scheme}://bucket/folder. Got {uri!r} instead.")
    if scheme != "abfss" and {"@", ":"} & set(bucket):
        raise RequestError(
            f"An address of {scheme}:// must hold no key, no password and no port (it is not shown). Credentials come from the environment "
            "alone, and a server by storage.endpoint (docs/storage.md)."
        )
    if scheme == "abfss" and not (bucket.partition("@")[0] and bucket.partition("@")[2]):
        raise RequestError(f"An address in Azure must be abfss://container@account.dfs.core.windows.net/folder. Got {uri!r} instead.")
    if key.strip("/") != key.rstrip("/") or any(part in ("", ".", "..") for part in key.strip("/").split("/") if key.strip("/")):
        raise RequestError(f"An address must hold no empty part, no . and no .. . Got {uri!r} instead.")
    return Address(scheme, bucket, key.strip("/"))


def local_path(uri: str) -> Path | None:
    """Return the path on this machine that a URI names, None where it names a place in an object store.

    Raises
    ------
    RequestError
        It is a URI of another kind.
    """
    parsed = urllib.parse.urlsplit(uri)
    if parsed.scheme == "file":
        return Path(urllib.parse.unquote(parsed.path)).resolve()
    if address(uri) is not None:
        return None
    if "://" in uri and len(parsed.scheme) > 1:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise RequestError(f"An address must be a local path or begin with file://, {known}. Got {uri!r} instead.")
    return Path(uri).expanduser().resolve()


def spelt(uri: str) -> str:
    """Return an address as Spark's file systems spell it."""
    if uri.startswith("s3://"):
        return "s3a://" + uri.removeprefix("s3://")
    return uri if "://" in uri else f"file://{uri}"  # where Hadoop is set up, a plain path is one of its own file system


def schemes(uris: Iterable[str]) -> tuple[str, ...]:
    """Return which kinds of object stores some URIs name."""
    return tuple(sorted({found.scheme for uri in uris if (found := address(uri)) is not None}))


def _reached(scheme: str) -> StorageConfig:
    return storage_from_environment(_settings) if scheme == "s3" else _settings


def delta_options(uri: str) -> dict[str, str] | None:
    """Return delta-rs's ``storage_options`` for a URI, None for a local one."""
    place = address(uri)
    if place is None:
        return None
    found = _reached(place.scheme)
    options: dict[str, Any] = {}
    if place.scheme == "s3":
        # a commit is a put that fails where the object is there already: two writers never take the same version
        options["aws_conditional_put"] = "etag"
        options["aws_virtual_hosted_style_request"] = not _path_style(found)
        if found.endpoint is not None:
            # delta-rs puts the bucket before the cloud's own host, and not before one that it is given
            host = found.endpoint if _path_style(found) else found.endpoint.replace("://", f"://{place.bucket}.", 1)
            options |= {"aws_endpoint_url": host, "aws_allow_http": found.endpoint.startswith("http://")}
        if (region := _region(found)) is not None:
            options["aws_region"] = region
    elif place.scheme == "gs" and found.endpoint is not None:
        options |= {"google_base_url": found.endpoint, "allow_http": found.endpoint.startswith("http://")}
    elif place.scheme == "abfss":
        options["azure_storage_account_name"] = place.account
        if found.endpoint is not None:
            options |= {"azure_endpoint": found.endpoint, "azure_allow_http": found.endpoint.startswith("http://")}
    return {key: option_text(value) for key, value in (options | dict(found.options)).items()}


def hadoop_settings(kinds: Iterable[str]) -> dict[str, str]:
    """Return what Spark must be told to reach these kinds of object stores."""
    settings: dict[str, Any] = {}
    for scheme in kinds:
        found = _reached(scheme)
        if scheme == "s3":
            # the SDK's own chain: variables, profile, web identity, container, machine
            settings["fs.s3a.aws.credentials.provider"] = "software.amazon.awssdk.auth.credentials.DefaultCredentialsProvider"
            settings["fs.s3a.path.style.access"] = _path_style(found)
            if found.endpoint is not None:
                settings["fs.s3a.endpoint"] = found.endpoint
                settings["fs.s3a.connection.ssl.enabled"] = found.endpoint.startswith("https://")
            if (region := _region(found)) is not None:
                settings["fs.s3a.endpoint.region"] = region
        elif scheme == "gs":
            settings["fs.gs.impl"] = "org.apache.hadoop.fs.gs.GoogleHadoopFileSystem"
            settings["fs.gs.auth.type"] = "APPLICATION_DEFAULT"
            if found.endpoint is not None:
                settings["fs.gs.storage.root.url"] = found.endpoint
        else:
            # roles alone: an account's key would have to be among Spark's settings, which its pages show
            token = "AZURE_FEDERATED_TOKEN_FILE" in os.environ
            settings["fs.azure.account.auth.type"] = "OAuth"
            settings["fs.azure.account.oauth.provider.type"] = "org.apache.hadoop.fs.azurebfs.oauth2." + (
                "WorkloadIdentityTokenProvider" if token else "MsiTokenProvider"
            )
    return {f"spark.hadoop.{key}": option_text(value) for key, value in settings.items()}


def file_system(place: Address) -> pafs.FileSystem:
    """Return pyarrow's file system for a place."""
    found = _reached(place.scheme)
    return _file_system(place.scheme, place.account, found.endpoint, _region(found), _path_style(found))


@lru_cache(maxsize=8)
def _file_system(scheme: str, account: str, endpoint: str | None, region: str | None, path_style: bool) -> pafs.FileSystem:
    import pyarrow.fs as pafs  # what Spark's image lacks, and needs not

    scheme_of, _, host = (endpoint or "").rstrip("/").partition("://")
    if scheme == "s3":
        return pafs.S3FileSystem(
            endpoint_override=host or None,
            scheme=scheme_of or "https",
            region=region,
            force_virtual_addressing=not path_style,
            allow_delayed_open=True,  # small files are put in one request
            connect_timeout=10,
            request_timeout=60,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        )
    if scheme == "gs":
        return pafs.GcsFileSystem(endpoint_override=host or None, scheme=scheme_of or "https")
    authority = {} if not host else {"blob_storage_authority": host, "blob_storage_scheme": scheme_of}
    return pafs.AzureFileSystem(account, account_key=os.environ.get("AZURE_STORAGE_ACCOUNT_KEY"), **authority)


def _region(found: StorageConfig) -> str | None:
    return found.region or ("us-east-1" if found.endpoint is not None else None)


def _path_style(found: StorageConfig) -> bool:
    return found.path_style if found.path_style is not None else found.endpoint is not None
