import contextlib
import os
import re
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

    def pid(self) -> int:
        return os.getpid()

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

    def hang_once(self, marker: str) -> str:
        if not os.path.exists(marker):
            open(marker, "w").close()
            time.sleep(600)
        return "survived"

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def poisoned(self) -> None:
        raise PoisonedInput("row 3 is not finite")

    def bug(self) -> None:
        raise KeyError("oops")


class Stillborn(Clumsy):
    """Workers that die before they can answer."""

    def __init__(self, threads: int, device: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class WithoutGpu(Clumsy):
    """Workers whose GPU is none that torch can use, as none is here."""

    def __init__(self, threads: int, device: str) -> None:
        from ray_actors.worker import Worker

        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        Worker(threads, "cuda")


@pytest.fixture
def made(ray_layout):
    """Makes pools, and ends them with the test: the machine has room for one."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file
    pools: list[Pool] = []

    def make(actors: int = ray_layout.actors, cpus: int = ray_layout.cpus, **options) -> Pool:
        pools.append(Pool(runtime.Layout(actors, cpus, 0.0), **{"attempts": 2, "timeout": 60, "worker": Clumsy} | options))
        return pools[-1]

    yield make
    for one in pools:
        one.close()


@pytest.fixture
def pool(made) -> Pool:
    return made()


def outcomes(pool: Pool, method: str, **units: dict) -> dict:
    return {o.key: o for o in pool.run(method, [Unit(key, arguments) for key, arguments in units.items()])}


def test_every_unit_is_answered_once(pool) -> None:
    found = outcomes(pool, "double", **{f"u{i}": {"value": i} for i in range(20)})
    assert {key: o.value for key, o in found.items()} == {f"u{i}": 2 * i for i in range(20)}


def test_a_dead_worker_is_replaced_and_its_unit_tried_again(pool, tmp_path) -> None:
    found = outcomes(pool, "die_once", a={"marker": str(tmp_path / "a")})
    assert (found["a"].value, found["a"].attempts, found["a"].error) == ("survived", 2, None)
    assert outcomes(pool, "double", b={"value": 4})["b"].value == 8


def test_a_lost_machine_costs_a_unit_one_attempt(made) -> None:
    import ray

    two = made(2, 1)
    assert set(outcomes(two, "slow", a={"seconds": 1.0}, b={"seconds": 1.0})) == {"a", "b"}
    for pid in ray.get([worker.pid.remote() for worker in two._running]):
        os.kill(pid, signal.SIGKILL)
    time.sleep(2)
    found = outcomes(two, "double", c={"value": 4})["c"]
    assert (found.value, found.error) == (8, None)


def test_workers_that_die_before_they_begin_are_given_up(made) -> None:
    said: list[str] = []
    with pytest.raises(ResourceError, match=r"did not start within 8 s.*The last one died: "):
        made(1, 1, worker=Stillborn, timeout=8, say=said.append).wait()
    assert any("died before it could begin" in line for line in said)


def test_a_gpu_that_torch_cannot_use_ends_the_job_with_what_to_do(made) -> None:
    """Ray counts it, and every unit would fail."""
    with pytest.raises(ResourceError, match=r"^torch \S+ cannot use the GPU of this machine: .+ray\.gpus_per_actor=0.+ environment\.$"):
        made(1, 1, worker=WithoutGpu).wait()


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


def test_workers_that_cannot_be_had_are_named(made, ray_layout, monkeypatch) -> None:
    monkeypatch.setattr("ray_actors.pool.TELL", 1.0)
    said: list[str] = []
    began = time.monotonic()
    too_large = made(2, ray_layout.cpus + 50, timeout=3, say=said.append)
    with pytest.raises(ResourceError, match=r"2 workers.*did not start within 3 s.*Lower ray.actors"):
        too_large.wait()
    assert time.monotonic() - began < 60
    assert re.match(r"Waiting for 2 workers of \d+ CPUs \(\d s of at most 3\)\. Free in the cluster: ", said[0])


def test_work_goes_on_while_other_workers_wait_for_a_place(made) -> None:
    assert outcomes(made(actors=9), "double", a={"value": 4})["a"].value == 8


def test_a_unit_that_holds_up_the_end_gets_a_second_worker(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("ray_actors.pool.LATE", 1.0)
    said: list[str] = []
    two = made(2, 1, say=said.append)
    units = [Unit("hangs", {"marker": str(tmp_path / "m")}), *(Unit(f"u{i}", {"marker": str(tmp_path)}) for i in range(3))]
    found = [(o.key, o.value) for o in two.run("hang_once", units)]
    assert sorted(found) == [("hangs", "survived"), *((f"u{i}", "survived") for i in range(3))]
    assert any("hangs takes long" in line for line in said)
    assert outcomes(two, "double", b={"value": 4})["b"].value == 8


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RayConfig(), runtime.Layout(4, 4, 0.0)),
        (RayConfig(actors=2), runtime.Layout(2, 8, 0.0)),
        (RayConfig(cpus_per_actor=2), runtime.Layout(8, 2, 0.0)),
    ],
)
def test_the_plan_divides_the_processors(config, expected) -> None:
    assert runtime.plan(config, [runtime.Node(16, 0, 64e9)]) == expected


def test_the_plan_knows_gpus_and_memory() -> None:
    machine = [runtime.Node(16, 2, 64e9)]
    assert runtime.plan(RayConfig(), machine) == runtime.Layout(2, 8, 1.0)
    assert runtime.plan(RayConfig(gpus_per_actor=0.5), machine) == runtime.Layout(4, 4, 0.5)
    assert runtime.plan(RayConfig(), [runtime.Node(16, 0, 5e9)]).actors == 2


@pytest.mark.parametrize(
    ("config", "nodes", "expected"),
    [
        (RayConfig(), [(0, 0), (2, 0), (2, 0)], (2, 2, 0.0)),
        (RayConfig(), [(0, 0), (16, 0), (8, 0)], (6, 4, 0.0)),
        (RayConfig(actors=3), [(8, 0), (4, 0)], (3, 4, 0.0)),
        (RayConfig(actors=4), [(8, 0), (4, 0)], (4, 2, 0.0)),
        (RayConfig(), [(32, 0), (8, 2), (8, 1)], (3, 4, 1.0)),
        (RayConfig(actors=6, cpus_per_actor=8), [(8, 0)], (6, 8, 0.0)),  # more machines may join
        (RayConfig(actors=6, gpus_per_actor=1), [(0, 0)], (6, 4, 1.0)),
    ],
)
def test_no_worker_spans_two_machines_of_a_cluster(config, nodes, expected) -> None:
    machines = [runtime.Node(cpus, gpus, 64e9) for cpus, gpus in nodes]
    assert runtime.plan(config, machines, elastic=True) == runtime.Layout(*expected)


@pytest.mark.parametrize(
    ("machines", "free", "there", "expected"),
    [
        ([(4, 64e9), (6, 64e9), (6, 64e9)], 4, 3, 0),  # two processors here and two there are no place for four
        ([(4, 64e9), (8, 64e9)], 8, 1, 2),
        ([(16, 5e9)], 8, 2, 0),  # memory for two
        ([(4, 64e9)], 0, 1, 0),
    ],
)
def test_growth_keeps_to_a_plan(machines, free, there, expected, monkeypatch) -> None:
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": float(free)})
    monkeypatch.setattr(runtime, "nodes", lambda: [runtime.Node(cpus, 0, memory) for cpus, memory in machines])
    assert runtime.room(RayConfig(), runtime.Layout(there, 4, 0.0), there) == expected


@pytest.mark.parametrize(
    "config", [RayConfig(actors=17), RayConfig(actors=4, cpus_per_actor=5), RayConfig(gpus_per_actor=1.0), RayConfig(gpus_per_actor=0.5)]
)
def test_an_impossible_plan_is_refused_before_anything_starts(config) -> None:
    with pytest.raises(ResourceError, match=r"and there are|at most"):
        runtime.plan(config, [runtime.Node(16, 0, 64e9)])


def test_a_local_cluster_is_on_loopback_and_asks_for_a_token(ray_layout) -> None:
    import psutil

    ours = psutil.Process().children(recursive=True)
    assert {"gcs_server", "raylet"} <= {process.name() for process in ours}
    token = os.environ["RAY_AUTH_TOKEN"]
    for process in ours:
        with contextlib.suppress(psutil.NoSuchProcess):  # workers of earlier tests are ending
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    assert connection.laddr.ip in ("127.0.0.1", "::ffff:127.0.0.1", "::1"), connection
            assert token not in " ".join(process.cmdline())


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
    env = os.environ | {"RAY_ADDRESS": "http://127.0.0.1:9"}  # where jobs are sent, and no cluster to join
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, env=env)
    assert done.stdout.split() == ["0", "1"], done.stderr[-2000:]


def test_workers_that_are_ended_before_they_began_give_their_processors_back(ray_layout):
    """A worker killed between its lease and its creation kept them: the next pool waited in vain."""
    for pause in (0.0, 0.3, 0.6, 0.9, 1.2):
        pool = Pool(ray_layout, attempts=1, timeout=60, worker=Clumsy)
        time.sleep(pause)
        pool.close()
    pool = Pool(ray_layout, attempts=1, timeout=60, worker=Clumsy)
    try:
        assert pool.call("double", value=2) == 4
    finally:
        pool.close()


@pytest.mark.parametrize(("visible", "expected"), [(None, 2), ("", 0), ("-1", 0), ("1", 1), ("0,1,2", 2)])
def test_gpus_that_were_hidden_are_not_counted(visible, expected, monkeypatch) -> None:
    monkeypatch.setattr("os.listdir", lambda _: ["null", "nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert runtime._local_gpus() == expected
