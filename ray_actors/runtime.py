"""Starting Ray on this machine, or joining a cluster, and working out how many workers it can hold."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
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
_LONGEST_FOLDER = 39
"""Characters of a folder for temporary files above which the paths of Ray's sockets exceed the 107 that Linux allows."""


@dataclass(frozen=True)
class Layout:
    """How the cluster is divided among workers."""

    actors: int
    cpus: int
    gpus: float

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.actors} worker{'s' * (self.actors != 1)} of {self.cpus} CPU{'s' * (self.cpus != 1)}{gpus}"


@dataclass(frozen=True)
class Node:
    """What one machine gives to workers."""

    cpus: int
    gpus: float = 0.0
    memory: float = 0.0
    """Bytes."""


def plan(config: RayConfig, nodes: Sequence[Node], *, elastic: bool = False) -> Layout:
    """Return the division of machines among workers, none of which can span two.

    Parameters
    ----------
    elastic : bool
        The cluster may grow: what it cannot hold now is not refused, and the pool waits for it (see :meth:`ray_actors.pool.Pool.wait`).

    Raises
    ------
    ResourceError
        More was asked for than there is. Asking anyway would wait for ever.
    """
    gpus, cpus = sum(node.gpus for node in nodes), sum(node.cpus for node in nodes)
    wanted_gpus = config.gpus_per_actor if config.gpus_per_actor is not None else (1.0 if gpus else 0.0)
    if wanted_gpus > gpus and not elastic:
        raise ResourceError(f"ray.gpus_per_actor must be at most the {gpus:g} GPUs there are. Got {wanted_gpus:g} instead.")
    actors = config.actors
    if actors is None:
        if wanted_gpus:
            actors = sum(math.floor(node.gpus / wanted_gpus) for node in nodes)
        else:
            share = config.cpus_per_actor or CPUS_PER_WORKER
            actors = sum(max(1, node.cpus // share) for node in nodes if node.cpus)
        actors = max(1, min(actors, cpus, sum(int(node.memory // WORKER_MEMORY) for node in nodes)))
    threads = config.cpus_per_actor or _threads(nodes, actors, wanted_gpus, or_else=CPUS_PER_WORKER if elastic and not cpus else 1)
    layout = Layout(actors, threads, wanted_gpus)
    if _holds(nodes, layout) < actors and not elastic:
        if actors * threads > cpus:
            raise ResourceError(
                f"{actors} workers of {threads} CPUs need {actors * threads} CPUs, and there are {cpus}. "
                "Lower ray.actors or ray.cpus_per_actor."
            )
        raise ResourceError(f"{actors} workers of {wanted_gpus:g} GPUs need {actors * wanted_gpus:g} GPUs, and there are {gpus:g}.")
    return layout


def _holds(nodes: Sequence[Node], layout: Layout) -> int:
    """Return how many workers of a layout's size the machines can hold."""
    return sum(min(node.cpus // layout.cpus, math.floor(node.gpus / layout.gpus) if layout.gpus else node.cpus) for node in nodes)


def _threads(nodes: Sequence[Node], actors: int, gpus: float, *, or_else: int) -> int:
    """Return the most processors that so many workers can have each."""
    most = max((node.cpus for node in nodes), default=0)
    return next((n for n in range(most, 0, -1) if _holds(nodes, Layout(actors, n, gpus)) >= actors), or_else)


def local_plan(config: RayConfig) -> Layout | None:
    """Return the division of this machine, or None where a cluster is named and only it can tell.

    Called before anything is started, so that an impossible request is refused first.
    """
    if config.where is not None:
        return None
    return plan(config, [Node(_local_cpus(), _local_gpus(), _local_memory())])


def start(config: RayConfig) -> tuple[Layout, bool]:
    """Start or join Ray and return how it is divided among workers, and whether it is ours to stop.

    A process that runs Ray already (a notebook, a test) keeps its own.

    A local cluster listens on loopback only and asks every connection for a token made for this process. The token lives
    in the environment of its processes, never in an argument or a log. A cluster's token is read by Ray itself
    (``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH``, ``~/.ray/auth_token``).

    Raises
    ------
    ResourceError
        The cluster cannot be reached, or cannot hold the workers asked for.
    """
    ours = not _running()
    if ours:
        _init(config)
    try:
        return held(config), ours
    except ResourceError:
        if ours:
            stop()  # nobody else would
        raise


def held(config: RayConfig) -> Layout:
    """Return how the cluster that this process is part of is divided among workers.

    Raises
    ------
    ResourceError
        It cannot hold the workers asked for, and it cannot grow.
    """
    return plan(config, nodes(), elastic=config.where is not None)


def divided(config: RayConfig, actors: int) -> Layout:
    """Return the division of that cluster among so many workers, whatever ``ray.actors`` says."""
    return held(dataclasses.replace(config, actors=actors))


def room(config: RayConfig, layout: Layout, there: int) -> int:
    """Return how many workers of a layout's size the cluster has a place for now, beside those that are there."""
    import ray

    free = ray.available_resources()
    spare = min(free.get("CPU", 0.0) // layout.cpus, free.get("GPU", 0.0) // layout.gpus if layout.gpus else math.inf)
    # what is free may lie on several machines, and says nothing of memory: no more than a plan for all machines would have
    planned = plan(dataclasses.replace(config, cpus_per_actor=layout.cpus), nodes(), elastic=True)
    return max(0, min(int(spare), planned.actors - there))


def nodes() -> list[Node]:
    """Return the machines of the cluster that this process is part of."""
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(held.get("CPU", 0)), held.get("GPU", 0.0), held.get("memory", 0.0)) for held in found]


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
    address = config.where
    if address is None:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = _token()
        # the switch's name is about other systems; what it does is keep every socket of a local cluster on 127.0.0.1
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if len(tempfile.gettempdir()) > _LONGEST_FOLDER:
            os.environ.setdefault("RAY_TMPDIR", "/tmp")  # Ray makes a folder of its own there, as without TMPDIR
        # said, since Ray would look for RAY_ADDRESS, and for a cluster that was started on this machine, on its own
        options |= {"address": "local", "num_cpus": _local_cpus(), "object_store_memory": _OBJECT_STORE, "include_dashboard": False}
    else:
        options["address"] = address

    authenticate()
    import ray  # after the environment, which it reads when imported

    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(**options)
            _quiet()
            return
        except Exception as error:  # Ray raises bare ones too, when a process of its own does not come up in time
            ray.shutdown()
            if address is None and attempt < ATTEMPTS:
                continue  # its processes get 30 s to come up, which a machine that is busy may not give them
            where = f"reached at {address}" if address else "started on this machine"
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ResourceError(f"Ray cannot be {where}: {reason}") from error


def authenticate() -> None:
    """Let Ray send its token, where there is one: it would not, unless told before it was imported."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    if os.environ.get("RAY_AUTH_TOKEN") or os.path.isfile(path):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ.get("RAY_AUTH_MODE") == "token":
        import ray

        ray._raylet.Config.initialize(json.dumps({"AUTH_MODE": "token"}))


@cache
def _token() -> str:
    # one for the life of the process: Ray reads it once, and a second local cluster with another would refuse its own driver
    return secrets.token_hex(32)


def _quiet() -> None:
    """Keep Ray's messages off the standard output, which holds a command's result: what they say of workers, outcomes say too."""
    from ray._private import worker

    worker._worker_logs_enabled = False


def keep_signals() -> None:
    """Take SIGTERM back from Ray, whose handler prints a stack trace first. Only the main thread can."""
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def is_open(config: RayConfig) -> bool:
    """Return whether this process joined a cluster without a token: then everyone who reaches it can."""
    return config.where is not None and os.environ.get("RAY_AUTH_MODE") != "token"


def stop() -> None:
    """Leave the cluster; a local one ends."""
    import ray

    ray.shutdown()


def _local_cpus() -> int:
    seen = len(os.sched_getaffinity(0))
    quota, _, period = _limit("cpu.max").partition(" ")
    return max(1, min(seen, int(quota) // int(period))) if quota.isdecimal() else seen


def _local_memory() -> float:
    limit = _limit("memory.max")
    total = float(psutil.virtual_memory().total)
    return min(total, float(limit)) if limit.isdecimal() else total


def _limit(name: str) -> str:
    """Return what a container may have; it sees all of its machine otherwise."""
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""


def _local_gpus() -> float:
    # asking torch costs seconds of import, on machines that have none
    try:
        found = sum(name.startswith("nvidia") and name[6:].isdigit() for name in os.listdir("/dev"))
    except OSError:
        return 0.0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return float(found)
    return float(min(found, len([one for one in visible.split(",") if one.strip() not in ("", "-1", "NoDevFiles")])))
