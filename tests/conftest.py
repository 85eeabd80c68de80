"""One local Spark and one local Ray for a whole test run, both real, both started as a job starts them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobs import engines
from ray_actors import runtime
from topicscale.config import RayConfig, SparkConfig


@pytest.fixture(scope="session")
def ray_layout():
    """The one local Ray of a test run."""
    layout, ours = runtime.start(RayConfig())
    yield layout
    if ours:
        runtime.stop()


@pytest.fixture(scope="session")
def spark():
    """The one local Spark of a test run."""
    from spark import session

    started = session.start(SparkConfig(), app_name="tests", brief=True)
    yield started
    session.stop(started)


@pytest.fixture(scope="session", autouse=True)
def kept() -> Iterator[engines.Session]:
    """What jobs of this process leave to the next: it is the same few runs' worth of imports that most of them would wait for."""
    with engines.session() as kept:
        yield kept
