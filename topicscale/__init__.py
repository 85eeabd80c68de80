"""topicscale: topic modelling for corpora that do not fit one machine, or may not leave it.

This package is the core: mathematics as pure functions of arrays, the table contract, the store, and the Python API.
Nothing in it imports Spark or Ray, :meth:`TopicModel.fit` and :func:`session` apart, which do when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.engines import session
    from topicscale.model import TopicModel

__all__ = ["TopicModel", "session"]


def __getattr__(name: str) -> Any:
    # workers import submodules of this package: they should not pay for pandas
    if name == "TopicModel":
        from topicscale.model import TopicModel

        return TopicModel
    if name == "session":
        from jobs.engines import session

        return session
    raise AttributeError(f"module 'topicscale' has no attribute {name!r}")
