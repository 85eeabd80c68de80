"""What two stores hold, for saying that they hold the same."""

from __future__ import annotations

import json
from typing import Any

from topicscale.store import Store
from topicscale.tables import TABLES

LOGS = {"runs", "generations"}


def contents(uri: str) -> dict[str, list[str]]:
    """Return the rows of every table but the logs, in canonical order."""
    store = Store(uri)
    store.pin()
    return {name: _rows(store, name) for name in TABLES if name not in LOGS and store.has(name)}


def _rows(store: Store, name: str) -> list[str]:
    def plain(value: Any) -> Any:
        return dict(sorted(value)) if isinstance(value, list) and value and isinstance(value[0], tuple) else value

    rows = store.read(name).to_pylist()
    # when something was done is no part of what was done
    return sorted(json.dumps({k: plain(v) for k, v in row.items() if k != "at"}, sort_keys=True, default=str) for row in rows)
