"""These tests start workers of their own."""

from __future__ import annotations

import pytest

from jobs import engines


@pytest.fixture(scope="package", autouse=True)
def released(kept: engines.Session) -> None:
    """The workers that earlier tests left let go of their processors."""
    kept.release()
