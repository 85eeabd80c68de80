"""One local Spark and one local Ray for a whole test run, both real, both started as a job starts them."""

from __future__ import annotations

import pytest

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
