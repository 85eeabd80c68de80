"""The recipes, one file each."""

from __future__ import annotations

import difflib
from importlib import import_module

from topicscale.errors import ConfigError
from topicscale.finetune.recipe import Recipe

_WHERE = {
    "softmax": "softmax",
    "cosine": "cosine",
    "mnr": "mnr",
    "mnr-hard": "mnr",
    "cached-mnr": "mnr",
    "augsbert": "augsbert",
    "tsdae": "tsdae",
    "simcse": "simcse",
    "ct": "ct",
    "crop": "crop",
    "clnn": "clnn",
    "gpl": "gpl",
    "mlm": "mlm",
    "setfit": "setfit",
}
NAMES = tuple(_WHERE)


def recipe(name: str) -> Recipe:
    """Return a recipe by name.

    Raises
    ------
    ConfigError
        There is none of that name; the nearest is named.
    """
    if name not in _WHERE:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"A recipe must be one of {', '.join(NAMES)}. Got {name!r} instead.{hint}")
    found: Recipe = import_module(f"topicscale.finetune.recipes.{_WHERE[name]}").RECIPES[name]
    return found
