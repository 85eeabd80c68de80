import os
import signal
import subprocess
import sys
import time

import pytest

from ray_actors import runtime
from ray_actors.pool import Pool, Unit
from topicscale.config import RayConfig
from topicscale.errors import PoisonedInput, ResourceError


class Clumsy:
    """Workers that fail in every way there is."""

    def __init__(self, threads: int, device: str) -> None:
        self.threads, self.device = threads, device

    def ready(self) -> bool:
        return True

    def progress(self) -> int:
        return 7

    def double(self, value: int) -> int:
        return 2 * value

    def slow(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def die_once(self, marker: str) -> str:
        if not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def poisoned(self) -> None:
        raise PoisonedInput("row 3 is not finite")

    def bug(self) -> None:
        raise KeyError("oops")


@pytest.fixture(scope="module")
def pool(ray_layout) -> Pool:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file
    return Pool(ray_layout, attempts=2, timeout=60, worker=Clumsy)


def outcomes(pool: Pool, method: str, **units: dict) -> dict:
    return {o.key: o for o in pool.run(method, [Unit(key, arguments) for key, arguments in units.items()])}


def test_every_unit_is_answered_once(pool) -> None:
    found = outcomes(pool, "double", **{f"u{i}": {"value": i} for i in range(20)})
    assert {key: o.value for key, o in found.items()} == {f"u{i}": 2 * i for i in range(20)}


def test_a_dead_worker_is_replaced_and_its_unit_tried_again(pool, tmp_path) -> None:
    found = outcomes(pool, "die_once", a={"marker": str(tmp_path / "a")})
    assert (found["a"].value, found["a"].attempts, found["a"].error) == ("survived", 2, None)
    assert outcomes(pool, "double", b={"value": 4})["b"].value == 8


def test_a_unit_that_kills_every_worker_fails_alone(pool) -> None:
    found = outcomes(pool, "die", a={})
    assert "died 2 times" in found["a"].error
    assert outcomes(pool, "double", b={"value": 4})["b"].value == 8


def test_an_error_is_not_tried_again(pool) -> None:
    poisoned = outcomes(pool, "poisoned", a={})["a"]
    assert (poisoned.error, poisoned.attempts) == ("PoisonedInput: row 3 is not finite", 1)
    bug = outcomes(pool, "bug", a={})["a"]
    assert bug.error.startswith("KeyError")
    assert bug.attempts == 1


def test_progress_is_seen_while_a_unit_runs(pool) -> None:
    seen: list[int] = []
    list(pool.run("slow", [Unit("a", {"seconds": 2.0})], progress=seen.append))
    assert seen
    assert set(seen) == {7}


def test_workers_that_cannot_be_had_are_named(ray_layout) -> None:
    too_many = runtime.Layout(actors=50, cpus=ray_layout.cpus, gpus=0.0)
    began = time.monotonic()
    with pytest.raises(ResourceError, match=r"50 workers.*Lower ray.actors"):
        Pool(too_many, attempts=1, timeout=3, worker=Clumsy).wait()
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RayConfig(), runtime.Layout(4, 4, 0.0)),
        (RayConfig(actors=2), runtime.Layout(2, 8, 0.0)),
        (RayConfig(cpus_per_actor=2), runtime.Layout(8, 2, 0.0)),
    ],
)
def test_the_plan_divides_the_processors(config, expected) -> None:
    assert runtime.plan(config, cpus=16, gpus=0, memory=64e9) == expected


def test_the_plan_knows_gpus_and_memory() -> None:
    assert runtime.plan(RayConfig(), cpus=16, gpus=2, memory=64e9) == runtime.Layout(2, 8, 1.0)
    assert runtime.plan(RayConfig(gpus_per_actor=0.5), cpus=16, gpus=2, memory=64e9) == runtime.Layout(4, 4, 0.5)
    assert runtime.plan(RayConfig(), cpus=16, gpus=0, memory=5e9).actors == 2


@pytest.mark.parametrize(
    "config", [RayConfig(actors=17), RayConfig(actors=4, cpus_per_actor=5), RayConfig(gpus_per_actor=1.0), RayConfig(gpus_per_actor=0.5)]
)
def test_an_impossible_plan_is_refused_before_anything_starts(config) -> None:
    with pytest.raises(ResourceError, match=r"and there are|at most"):
        runtime.plan(config, cpus=16, gpus=0, memory=64e9)


def test_a_local_cluster_is_on_loopback_and_asks_for_a_token(ray_layout) -> None:
    import psutil

    ours = [p for p in psutil.process_iter(["name", "cmdline"]) if p.info["name"] in ("gcs_server", "raylet")]
    assert ours
    token = os.environ["RAY_AUTH_TOKEN"]
    for process in ours:
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip in ("127.0.0.1", "::ffff:127.0.0.1", "::1"), connection
        assert token not in " ".join(process.info["cmdline"])


def test_ray_leaves_print_alone(ray_layout) -> None:
    from ray.experimental import tqdm_ray

    tqdm_ray.instance()  # what Ray makes when a worker first says something, and what would replace `print`
    assert type(print).__name__ == "builtin_function_or_method"


def test_a_process_can_start_ray_again() -> None:
    """As a notebook does that fits two models, one after the other."""
    script = (
        "from ray_actors import runtime; from topicscale.config import RayConfig; import ray\n"
        "for number in range(2):\n"
        "    runtime.start(RayConfig()); print(ray.get(ray.remote(lambda: number).remote())); runtime.stop()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert done.stdout.split() == ["0", "1"], done.stderr[-2000:]
