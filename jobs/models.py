"""``topicscale models``: the embedding models that were trained on a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from topicscale import registry
from topicscale.store import Store


def models(store: str) -> dict[str, Any]:
    """Return every model that a store has trained, oldest first, with what it was judged."""
    source = Store(store)
    return {
        "store": source.uri,
        "models": [
            {
                "name": model.name,
                "revision": model.revision,
                "status": model.status,
                "verdict": model.verdict,
                "base": model.base,
                "steps": model.steps,
                "training_steps": model.steps_done,
                "measures": dict(model.measures),
                "seconds": model.seconds,
                "at": model.at,
                "path": str(model.path),
            }
            for model in registry.trained(source)
        ],
    }


def describe(found: Mapping[str, Any]) -> str:
    """Return the models as text for a terminal."""
    if not found["models"]:
        return (
            f"{found['store']} has no models of its own. Train one with: "
            f"topicscale finetune --recipe crop --store {found['store']} --output NAME"
        )
    width = max(len(model["name"]) for model in found["models"])
    lines = []
    for model in found["models"]:
        lines.append(f"{model['name']:<{width}}  {model['revision'][:12]}  {model['at']:%Y-%m-%d %H:%M}  {model['status']}")
        lines.append(f"{'':<{width}}  from {model['base']}, {model['training_steps']:,} steps; {model['verdict']}")
    return "\n".join(lines)
