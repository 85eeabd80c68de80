"""A small corpus with known themes, made here: the core of the tests needs nothing from outside the project."""

from __future__ import annotations

import csv
import itertools
import random
from pathlib import Path

THEMES: dict[str, tuple[str, str, str]] = {  # things, acts, places
    "cooking": ("soup bread pasta curry salad", "simmer bake season knead stir", "kitchen oven recipe garlic"),
    "space": ("rocket satellite telescope orbiter lander", "launch orbit observe dock descend", "planet moon galaxy mission"),
    "banking": ("card transfer account mortgage deposit", "refund verify freeze approve decline", "bank balance fee interest"),
    "football": ("striker goalkeeper midfielder defender coach", "score pass tackle save sprint", "match league stadium penalty"),
    "medicine": ("patient surgeon nurse vaccine tumour", "treat diagnose operate inject recover", "hospital symptom dose clinic"),
}


def rows(each: int = 40, *, seed: int = 7) -> list[tuple[str, str, str]]:
    """Return (id, text, theme) rows, ``each`` distinct texts per theme, shuffled the same way every time."""
    generator = random.Random(seed)
    made: list[tuple[str, str]] = []
    for theme, words in THEMES.items():
        things, acts, places = (part.split() for part in words)
        texts = [
            f"The {thing} was ready, so we had to {act} it near the {place} and then the second {other}, number {n}."
            for n, (thing, act, place, other) in enumerate(itertools.product(things, acts, places, things))
        ]
        made += [(text, theme) for text in generator.sample(texts, each)]
    generator.shuffle(made)
    return [(f"d{i:04d}", text, theme) for i, (text, theme) in enumerate(made)]


def write_csv(path: Path, content: list[tuple[str, str, str]]) -> Path:
    """Write rows with a header and return the path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "theme"])
        writer.writerows(content)
    return path
