"""What ``finetune.steps`` says: trainings one after another, each of one recipe or of several together."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from topicscale.config import Config, FinetuneConfig, numbers
from topicscale.errors import ConfigError
from topicscale.finetune.recipe import COLUMNS, Kind, Recipe
from topicscale.finetune.recipes import recipe

SOURCE = ("input", "columns", "reader", "score_range")
"""Keys of a step that say where its data are."""
SETTINGS = ("epochs", "batch_size", "learning_rate", "warmup", "max_steps", "pooling")
"""Keys of a step that stand before those of ``finetune``."""
CHECKPOINTS = 10
"""Checkpoints of one training, about, where their distance is not given."""
FARTHEST = 200
"""Steps between two checkpoints then, at most."""


@dataclass(frozen=True)
class Part:
    """One data set of a training, and the recipe that makes its examples and loss."""

    recipe: Recipe
    options: Mapping[str, Any]
    input: tuple[str, ...] = ()
    """Files of labelled data; empty where the step names none."""
    columns: Mapping[str, str] = field(default_factory=dict)
    reader: Mapping[str, Any] = field(default_factory=dict)
    score_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Step:
    """One training."""

    parts: tuple[Part, ...]
    epochs: float
    batch_size: int
    learning_rate: float
    warmup: float
    weight_decay: float
    scheduler: str
    max_steps: int | None
    pooling: str | None
    """As asked for; None leaves it to :func:`pooling_of`."""

    @property
    def name(self) -> str:
        """How people know it: ``tsdae``, ``mnr + cosine``."""
        return " + ".join(part.recipe.name for part in self.parts)

    @property
    def parallel(self) -> bool:
        """Whether several workers can train it together."""
        return all(part.recipe.parallel for part in self.parts)

    @property
    def passes(self) -> int:
        """How often examples are made of the data; each pass over a training of one pass reads all of them."""
        return max(1, math.ceil(self.epochs)) if any(part.recipe.fresh for part in self.parts) else 1


def parse(config: FinetuneConfig) -> list[Step]:
    """Return the trainings that a configuration asks for.

    Raises
    ------
    ConfigError
        There is none, or a recipe, option or key is unknown, or recipes that train together ask for different settings.
    """
    if not config.steps:
        raise ConfigError("finetune.steps must name at least one recipe: topicscale finetune --recipe mnr ...")
    return [_step(given, config, f"finetune.steps[{number}]") for number, given in enumerate(config.steps)]


def pooling_of(step: Step, base: Any) -> str | None:
    """Return how the vectors of a base's tokens become one in a step: as asked for, else as the base has it (None).

    A plain language model has no way of its own: it takes the recipe's, and mean where each token sees only those before it.
    """
    if step.pooling is not None or base.pooling is not None:
        return step.pooling
    own = step.parts[0].recipe.defaults.pooling or "mean"
    return "mean" if base.causal and own == "cls" else own


def of_text(text: str) -> tuple[Any, ...]:
    """Return the steps that ``--recipe`` means: commas between trainings one after another, plus signs between recipes trained together.

    ``tsdae,gpl`` is TSDAE, then GPL from what it left; ``mnr+cosine`` is one training of both.
    """
    steps: list[Any] = []
    for part in text.split(","):
        names = [name.strip() for name in part.split("+")]
        if not all(names):
            raise ConfigError(
                f"--recipe must be recipes with commas (one after another) or + (together) between them. Got {text!r} instead."
            )
        steps.append(names[0] if len(names) == 1 else names)
    return tuple(steps)


def checkpoint_steps(config: FinetuneConfig, total: int) -> int:
    """Return the steps between two checkpoints of a training of ``total`` steps."""
    return config.checkpoint_steps or max(1, min(FARTHEST, math.ceil(total / CHECKPOINTS)))


def check(steps: Sequence[Step], config: Config, base: Any) -> None:
    """Raise where a base, a recipe and the settings do not go together.

    Raises
    ------
    ConfigError, ModelError
    """
    tuned = config.finetune
    for step in steps:
        if step.batch_size % (tuned.workers or 1):
            raise ConfigError(f"finetune.batch_size must be a multiple of the {tuned.workers} workers. Got {step.batch_size} instead.")
        for part in step.parts:
            name = part.recipe.name
            part.recipe.check(base, part.options)
            part.recipe.check_settings(base, tuned, part.options)
            if (tuned.workers or 1) > 1 and not part.recipe.parallel:
                raise ConfigError(
                    f"finetune.workers must be 1 for the recipe {name}, which several processes cannot train together (its loss holds a "
                    f"second model, which they would not keep alike). Got {tuned.workers} instead."
                )


def _step(given: Any, config: FinetuneConfig, where: str) -> Step:
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    if not several:
        raise ConfigError(f"{where} must name a recipe. Got an empty list instead.")
    parts: list[Part] = []
    chosen: dict[str, Any] = {}
    for one in several:
        part, settings = _part(one, where)
        parts.append(part)
        for key, value in settings.items():
            if chosen.setdefault(key, value) != value:
                raise ConfigError(f"{where}: recipes that are trained together have one {key}. Got {chosen[key]!r} and {value!r}.")
    first = parts[0].recipe.defaults

    def setting(key: str) -> Any:
        if key in chosen:
            return chosen[key]
        value = getattr(config, key, None)
        return value if value is not None else getattr(first, key, None)

    warmup = float(setting("warmup"))
    return Step(
        parts=tuple(parts),
        epochs=float(setting("epochs")),
        batch_size=int(setting("batch_size")),
        learning_rate=float(setting("learning_rate")),
        warmup=warmup,
        weight_decay=first.weight_decay,
        scheduler="constant_with_warmup" if first.scheduler == "constant" and warmup else first.scheduler,
        max_steps=setting("max_steps"),
        pooling=chosen.get("pooling", config.pooling),
    )


def _part(given: Any, where: str) -> tuple[Part, dict[str, Any]]:
    if isinstance(given, str):
        given = {"recipe": given}
    if not isinstance(given, Mapping) or "recipe" not in given:
        raise ConfigError(f"{where} must be a recipe's name, or a mapping with the key recipe. Got {given!r} instead.")
    found = recipe(str(given["recipe"]))
    options: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    source: dict[str, Any] = {}
    for key, value in given.items():
        if key == "recipe":
            continue
        if key in found.options:
            options[key] = numbers(value)
        elif key in SETTINGS:
            settings[key] = _number(numbers(value), key, where)
        elif key in SOURCE:
            source[key] = value
        else:
            known = [*found.options, *SETTINGS, *SOURCE]
            near = difflib.get_close_matches(key, known, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}."
            raise ConfigError(f"{where}: the recipe {found.name} has no key {key!r}. {hint}")
    paths = source.get("input", ())
    if not isinstance(paths, (str, list, tuple)) or not all(isinstance(path, str) for path in paths):
        raise ConfigError(f"{where}.input must be a path or a list of paths. Got {paths!r} instead.")
    limits = numbers(source.get("score_range"))
    if limits is not None and (not isinstance(limits, (list, tuple)) or len(limits) != 2 or not all(map(_is_number, limits))):
        raise ConfigError(f"{where}.score_range must be two numbers, the lowest and the highest score. Got {limits!r} instead.")
    part = Part(
        found,
        found.with_defaults(options),
        (paths,) if isinstance(paths, str) else tuple(paths),
        _mapping(source.get("columns"), f"{where}.columns"),
        _mapping(source.get("reader"), f"{where}.reader"),
        None if limits is None else (float(limits[0]), float(limits[1])),
    )
    return part, settings


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping. Got {value!r} instead.")
    return dict(value)


def _number(value: Any, key: str, where: str) -> Any:
    if key == "pooling":
        if value not in ("mean", "max", "cls"):
            raise ConfigError(f"{where}.pooling must be mean, max or cls. Got {value!r} instead.")
        return value
    number = _is_number(value)
    if number and key in ("batch_size", "max_steps") and float(value).is_integer():
        value = int(value)  # 1e3
    if key == "warmup":
        if not number or not 0 <= value < 1:
            raise ConfigError(f"{where}.warmup must be at least 0 and below 1, a share of the steps. Got {value!r} instead.")
    elif not number or value <= 0:
        raise ConfigError(f"{where}.{key} must be a number above 0. Got {value!r} instead.")
    elif key in ("batch_size", "max_steps") and not isinstance(value, int):
        raise ConfigError(f"{where}.{key} must be a whole number. Got {value!r} instead.")
    return value


def kind_for(part: Part, given: Kind) -> Kind | None:
    """Return the kind of data a part trains on when it is given data of one kind: the same, its texts alone, or None where it cannot.

    Any data hold texts, so that recipes that need nothing else take every kind.
    """
    if given in part.recipe.kinds:
        return given
    return "texts" if "texts" in part.recipe.kinds else None


def columns_of(kind: Kind) -> tuple[str, ...]:
    """Return the text columns of a kind of data."""
    return tuple(name for name in COLUMNS[kind] if name not in ("score", "label"))
