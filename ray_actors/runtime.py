"""Starting Ray on this machine, or joining a cluster, and working out how many workers it can hold."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import secrets
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil

from topicscale.config import RayConfig
from topicscale.errors import ResourceError

WORKER_MEMORY = 2 * 2**30
"""Bytes that one worker is counted with: a loaded model, one partition of vectors and its neighbour graph."""
CPUS_PER_WORKER = 4
"""Processors a worker is given by default: matrix products stop gaining much beyond them."""
ATTEMPTS = 2
"""Times a local cluster is started before that counts as failed."""
_OBJECT_STORE = 256 * 2**20  # workers exchange centroids and samples, never documents


@dataclass(frozen=True)
class Layout:
    """How the cluster is divided among workers."""

    actors: int
    cpus: int
    gpus: float

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.actors} worker{'s' * (self.actors != 1)} of {self.cpus} CPU{'s' * (self.cpus != 1)}{gpus}"


def plan(config: RayConfig, *, cpus: int, gpus: float, memory: float) -> Layout:
    """Return the division of ``cpus``, ``gpus`` and ``memory`` (bytes) among workers.

    Raises
    ------
    ResourceError
        More was asked for than there is. Asking anyway would wait for ever.
    """
    wanted_gpus = config.gpus_per_actor if config.gpus_per_actor is not None else (1.0 if gpus else 0.0)
    if wanted_gpus > gpus:
        raise ResourceError(f"ray.gpus_per_actor must be at most the {gpus:g} GPUs there are. Got {wanted_gpus:g} instead.")
    actors = config.actors
    if actors is None:
        if wanted_gpus:
            actors = max(1, math.floor(gpus / wanted_gpus))
        elif config.cpus_per_actor is not None:
            actors = max(1, cpus // config.cpus_per_actor)
        else:
            actors = max(1, cpus // CPUS_PER_WORKER)
        actors = max(1, min(actors, cpus, int(memory // WORKER_MEMORY)))
    threads = config.cpus_per_actor or max(1, cpus // actors)
    if actors * threads > cpus:
        raise ResourceError(
            f"{actors} workers of {threads} CPUs need {actors * threads} CPUs, and there are {cpus}. "
            "Lower ray.actors or ray.cpus_per_actor."
        )
    if actors * wanted_gpus > gpus:
        raise ResourceError(f"{actors} workers of {wanted_gpus:g} GPUs need {actors * wanted_gpus:g} GPUs, and there are {gpus:g}.")
    return Layout(actors, threads, wanted_gpus)


def local_plan(config: RayConfig) -> Layout | None:
    """Return the division of this machine, or None where a cluster is named and only it can tell.

    Called before anything is started, so that an impossible request is refused first.
    """
    if config.address is not None:
        return None
    return plan(config, cpus=_local_cpus(), gpus=_local_gpus(), memory=float(psutil.virtual_memory().total))


def start(config: RayConfig) -> tuple[Layout, bool]:
    """Start or join Ray and return how it is divided among workers, and whether it is ours to stop.

    A process that runs Ray already (a notebook, a test) keeps its own.

    A local cluster listens on loopback only and asks every connection for a token made for this process. The token lives
    in the environment of its processes, never in an argument or a log.

    Raises
    ------
    ResourceError
        The cluster cannot be reached, or cannot hold the workers asked for.
    """
    ours = not _running()
    if ours:
        _init(config)
    return held(config), ours


def held(config: RayConfig) -> Layout:
    """Return how the cluster that this process is part of is divided among workers.

    Raises
    ------
    ResourceError
        It cannot hold the workers asked for.
    """
    import ray

    total = ray.cluster_resources()
    return plan(config, cpus=int(total.get("CPU", 0)), gpus=total.get("GPU", 0.0), memory=total.get("memory", 0.0))


def divided(config: RayConfig, actors: int) -> Layout:
    """Return the division of that cluster among so many workers, whatever ``ray.actors`` says."""
    return held(dataclasses.replace(config, actors=actors))


def _running() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _init(config: RayConfig) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # under `uv run` Ray would build an environment per worker
    # Ray would put a function of its own in place of `print`, and numba, which knows the builtin one, then compiles no
    # kernel that holds a print (UMAP's and fast_hdbscan's neighbour graphs do)
    os.environ["RAY_TQDM_PATCH_PRINT"] = "0"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if config.address is None:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = _token()
        # the switch's name is about other systems; what it does is keep every socket of a local cluster on 127.0.0.1
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        options |= {"num_cpus": _local_cpus(), "object_store_memory": _OBJECT_STORE, "include_dashboard": False}
    else:
        options["address"] = config.address

    import ray  # after the environment, which it reads when imported

    if config.address is None:
        # a program that had imported Ray before would start a cluster that asks for a token with processes that have none
        ray._raylet.Config.initialize(json.dumps({"AUTH_MODE": "token"}))

    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(**options)
            _quiet()
            return
        except Exception as error:  # Ray raises bare ones too, when a process of its own does not come up in time
            ray.shutdown()
            if config.address is None and attempt < ATTEMPTS:
                continue  # its processes get 30 s to come up, which a machine that is busy may not give them
            where = f"reached at {config.address}" if config.address else "started on this machine"
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ResourceError(f"Ray cannot be {where}: {reason}") from error


@cache
def _token() -> str:
    # one for the life of the process: Ray reads it once, and a second local cluster with another would refuse its own driver
    return secrets.token_hex(32)


def _quiet() -> None:
    """Keep Ray's messages off the standard output, which holds a command's result: what they say of workers, outcomes say too."""
    from ray._private import worker

    worker._worker_logs_enabled = False


def stop() -> None:
    """Leave the cluster; a local one ends."""
    import ray

    ray.shutdown()


def _local_cpus() -> int:
    return len(os.sched_getaffinity(0))


def _local_gpus() -> float:
    # asking torch costs seconds of import, on machines that have none
    try:
        return float(sum(name.startswith("nvidia") and name[6:].isdigit() for name in os.listdir("/dev")))
    except OSError:
        return 0.0
