"""The reductions and algorithms that ``cluster`` chooses from by name, each behind the same small interface.

Heavy packages (numba, UMAP, cuML) are imported by the function that uses them.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from topicscale.config import ClusterConfig
from topicscale.errors import ConfigError, MissingDependency, ResourceError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

REDUCTIONS = ("none", "pca", "umap", "cuml_umap")
ALGORITHMS = ("evoc", "hdbscan", "fast_hdbscan", "kmeans", "cuml_hdbscan")
SIZES = ("min_cluster_size", "base_min_cluster_size")
"""What a clustering calls its smallest topic."""
CUML_NEIGHBOURS = 1023
"""The most ``min_samples`` that cuML's HDBSCAN takes."""
PERSISTENCE = 0.75
"""EVoC's layers with at least this fraction of the greatest persistence are good enough."""
_LIGHT = {"pca": "sklearn.decomposition.PCA", "kmeans": "sklearn.cluster.KMeans"}
_PACKAGES = {
    "umap": ("umap", "umap-learn", ""),
    "cuml_umap": ("cuml", "cuml", "gpu"),
    "evoc": ("evoc", "evoc", ""),
    "hdbscan": ("hdbscan", "hdbscan", ""),
    "fast_hdbscan": ("fast_hdbscan", "fast-hdbscan", ""),
    "cuml_hdbscan": ("cuml", "cuml", "gpu"),
}


def check(config: ClusterConfig) -> None:
    """Validate names, import paths and installed packages, before anything is started.

    Raises
    ------
    ConfigError
        A name is neither known nor an import path of a class with the method it needs, or a parameter is none that the class takes,
        or is told elsewhere.
    MissingDependency
        A named algorithm's package is not installed.
    """
    _check_one("cluster.reduction", config.reduction, REDUCTIONS, "fit_transform")
    _check_one("cluster.algorithm", config.algorithm, ALGORITHMS, "fit_predict")
    _check_parameters("cluster.reduction_params", config.reduction, config.reduction_params)
    _check_parameters("cluster.params", config.algorithm, config.params)
    for key in SIZES:
        if isinstance(config.params.get(key), int):  # as a parameter it would be as large in a sample's parts as in partitions
            raise ConfigError(
                f"cluster.params must leave {key} to topics.min_size, the smallest topic, or cluster.min_cluster_size, the smallest in a "
                f"partition. Got {config.params[key]!r} instead. Out of a store's settings it is taken with: update --refit --set "
                f"cluster.params.{key}=null"
            )


def check_device(config: ClusterConfig, gpus: float) -> None:
    """Raise ResourceError where an algorithm needs a GPU and the workers have none."""
    for key, value in (("cluster.reduction", config.reduction), ("cluster.algorithm", config.algorithm)):
        if value.startswith("cuml_") and not gpus:
            raise ResourceError(
                f"{key}={value} needs a GPU, and the workers have none. Run it where there is one (ray.gpus_per_actor), or use "
                f"{key}={value.removeprefix('cuml_')}."
            )


def reduce(rows: Float32, config: ClusterConfig) -> Float32:
    """Return the rows in fewer dimensions, float32 (n, k); parameters that so few rows cannot meet are lowered."""
    name, params = config.reduction, dict(config.reduction_params)
    n = len(rows)
    if name == "none":
        return rows
    if name == "pca":
        from sklearn.decomposition import PCA

        params.setdefault("n_components", 5)
        if isinstance(params["n_components"], int):
            params["n_components"] = min(params["n_components"], n, rows.shape[1])
        model = PCA(**{"random_state": config.seed, "svd_solver": "covariance_eigh", **params})
    elif name in ("umap", "cuml_umap"):
        params = {"n_neighbors": 15, "n_components": 5, "min_dist": 0.0, "metric": "cosine", "random_state": config.seed, **params}
        params["n_neighbors"] = max(2, min(params["n_neighbors"], n - 1))
        # a spectral start needs more points than components, and ARPACK more than that
        params["n_components"] = max(1, min(params["n_components"], n - 2))
        if n < 4 * params["n_components"]:
            params.setdefault("init", "random")
        if name == "umap":
            from umap import UMAP

            params.setdefault("n_jobs", 1)  # UMAP overrides it with a warning when seeded
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return np.ascontiguousarray(UMAP(**params).fit_transform(rows), dtype=np.float32)
        from cuml.manifold import UMAP as CumlUMAP

        model = CumlUMAP(**params)
    else:
        model = _construct(name, params, config, None)
    return np.ascontiguousarray(model.fit_transform(rows), dtype=np.float32)


def predict(rows: Float32, config: ClusterConfig, size: int, fine: bool) -> tuple[Int64, Float32]:
    """Return each row's cluster, -1 for noise, int64 (n,), and its membership strength, float32 (n,)."""
    given = {key: value for key, value in config.params.items() if key not in SIZES or value is not None}
    config = replace(config, params=given)  # a size that is null is none
    model = _MODELS.get(config.algorithm, _by_path)(rows, config, size, fine)
    labels = np.array(model.fit_predict(rows), dtype=np.int64).ravel()
    if labels.shape != (len(rows),):
        found = f"{config.algorithm!r} gave {len(labels)} labels for {len(rows)} rows"
        raise ConfigError(f"cluster.algorithm must give one label a row. {found} instead.")
    strengths = getattr(model, "membership_strengths_", getattr(model, "probabilities_", None))
    if config.algorithm == "evoc":
        layer = 0 if fine else _layer(model.persistence_scores_)
        labels, strengths = np.array(model.cluster_layers_[layer], dtype=np.int64), model.membership_strength_layers_[layer]
    if strengths is None or len(strengths) != len(rows):
        strengths = np.ones(len(rows), np.float32)
    labels[labels < 0] = -1
    return labels, np.nan_to_num(np.array(strengths, dtype=np.float32), nan=0.0)


def _evoc(rows: Float32, config: ClusterConfig, size: int, fine: bool) -> Any:
    from evoc import EVoC

    params = {"base_min_cluster_size": size, "random_state": config.seed, **config.params}
    params["n_neighbors"] = max(2, min(params.get("n_neighbors", 15), len(rows) - 1))
    params["min_samples"] = max(1, min(params.get("min_samples", 5), len(rows) - 1))
    return EVoC(**params)


def _layer(persistence: Sequence[float]) -> int:
    """Return the finest of EVoC's layers that is nearly as persistent as the most persistent one.

    EVoC itself takes the most persistent, which is often far coarser than another just as good: ten topics for twenty
    thousand docstrings, where a layer of a hundred has .8 of the persistence and more coherent words. Its first layer,
    the finest, has no score and is taken only where it is the only one.
    """
    scores = np.asarray(persistence, dtype=np.float64)
    return int(np.flatnonzero(scores >= PERSISTENCE * scores.max())[0])


def _hdbscan(rows: Float32, config: ClusterConfig, size: int, fine: bool) -> Any:
    from hdbscan import HDBSCAN

    return HDBSCAN(**_density(rows, {"core_dist_n_jobs": 1, **config.params}, size, fine))


def _fast_hdbscan(rows: Float32, config: ClusterConfig, size: int, fine: bool) -> Any:
    from fast_hdbscan import HDBSCAN

    return HDBSCAN(**_density(rows, {"reproducible": True, **config.params}, size, fine))


def _cuml_hdbscan(rows: Float32, config: ClusterConfig, size: int, fine: bool) -> Any:
    from cuml.cluster import HDBSCAN

    params = _density(rows, dict(config.params), size, fine)
    return HDBSCAN(**params | {"min_samples": min(params["min_samples"], CUML_NEIGHBOURS)})


def _density(rows: Float32, params: Mapping[str, Any], size: int, fine: bool) -> dict[str, Any]:
    method = "leaf" if fine else "eom"
    result = {"min_cluster_size": max(2, min(size, len(rows))), "metric": "euclidean", "cluster_selection_method": method, **params}
    result["min_samples"] = max(1, min(result.get("min_samples") or result["min_cluster_size"], len(rows) - 1))
    return result


def _kmeans(rows: Float32, config: ClusterConfig, size: int, fine: bool) -> Any:
    from sklearn.cluster import KMeans

    params = {"random_state": config.seed, "n_init": 1, **config.params}
    if "n_clusters" not in params:
        # the old rule of thumb, sqrt(n / 2); none smaller than the minimum on average
        rule = round((len(rows) / 2) ** 0.5) * (4 if fine else 1)
        params["n_clusters"] = max(1, min(rule, len(rows) // max(size, 1)))
    params["n_clusters"] = min(params["n_clusters"], len(rows))
    return KMeans(**params)


def _by_path(rows: Float32, config: ClusterConfig, size: int, fine: bool) -> Any:
    return _construct(config.algorithm, dict(config.params), config, size)


_MODELS: dict[str, Callable[[Float32, ClusterConfig, int, bool], Any]] = {
    "evoc": _evoc,
    "hdbscan": _hdbscan,
    "fast_hdbscan": _fast_hdbscan,
    "kmeans": _kmeans,
    "cuml_hdbscan": _cuml_hdbscan,
}


def _construct(path: str, params: dict[str, Any], config: ClusterConfig, size: int | None) -> Any:
    """Make an object of a class given by import path; seed and minimum size are passed where its constructor takes them."""
    kind = _resolve(path)
    accepted = inspect.signature(kind).parameters
    if "random_state" in accepted:
        params.setdefault("random_state", config.seed)
    for key in SIZES:
        if size is not None and key in accepted:
            params.setdefault(key, size)
    return kind(**params)


def _resolve(path: str) -> Any:
    module, _, name = path.replace(":", ".").rpartition(".")
    return getattr(importlib.import_module(module), name)


def _check_one(key: str, value: str, known: tuple[str, ...], method: str) -> None:
    if value in known:
        module, package, extra = _PACKAGES.get(value, ("", "", ""))
        if module and importlib.util.find_spec(module) is None:
            raise MissingDependency(package, extra, f"{key}={value}")
        return
    rule = f"one of {', '.join(known)}, or the import path of a class with {method}"
    if "." not in value.replace(":", "."):
        raise ConfigError(f"{key} must be {rule}. Got {value!r} instead.")
    if value.startswith(("__main__.", "__main__:")) or "<locals>" in value:
        raise ConfigError(f"{key} must be {rule}. {value!r} is in this process alone: put the class into a module that workers can import.")
    try:
        found = _resolve(value)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key} must be {rule}. {value!r} cannot be imported: {error}") from error
    if not callable(getattr(found, method, None)):
        raise ConfigError(f"{key} must be {rule}. {value!r} has no {method}.")


def _check_parameters(key: str, value: str, params: Mapping[str, Any]) -> None:
    """Raise ConfigError for a parameter that a class does not take. Others import numba, which takes seconds: their units will say it."""
    path = _LIGHT.get(value, value)
    if not params or "." not in path.replace(":", "."):
        return
    try:
        accepted = inspect.signature(_resolve(path)).parameters
    except (TypeError, ValueError):  # of a compiled class, which tells nothing
        return
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in accepted.values()):
        return
    if unknown := [name for name in params if name not in accepted]:
        near = difflib.get_close_matches(unknown[0], accepted, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"It takes {', '.join(accepted)}."
        raise ConfigError(f"{key} must be parameters of {value}. Got {unknown[0]!r} instead. {hint}")


class limited:
    """Limit BLAS and numba to a number of threads while a block runs."""

    def __init__(self, number: int | None) -> None:
        self.number = number

    def __enter__(self) -> None:
        self._pools: Any = None
        if self.number is None:
            return
        from threadpoolctl import threadpool_limits

        self._pools = threadpool_limits(self.number)
        numba: Any = importlib.import_module("numba")
        numba.set_num_threads(max(1, min(self.number, numba.config.NUMBA_NUM_THREADS)))

    def __exit__(self, *_: object) -> None:
        if self._pools is not None:
            self._pools.restore_original_limits()
