"""The models of a store: what is noted, what is found by name, and what a store that was moved finds."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from topicscale import config, registry
from topicscale.errors import RequestError
from topicscale.models import embedding_space, resolve
from topicscale.store import Store

MINILM = resolve("all-MiniLM-L6-v2").path


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store", create=True)


def note(store: Store, name: str, status: str, *, revision: str = "") -> registry.Trained:
    revision = revision or resolve(str(MINILM)).revision
    model = registry.Trained(
        name=name,
        revision=revision,
        status=status,
        base="all-MiniLM-L6-v2",
        base_revision="0",
        steps=["crop"],
        measures={"base": {}, "model": {}},
        verdict="topics.npmi 0.1 is worse than the base's 0.2.",
        configuration={},
        data={},
        steps_done=3,
        seconds=1.0,
        at=datetime.now(UTC),
        path=registry.folder(store, revision, name),
    )
    registry.add(store, model, MINILM)
    return model


def asking(name: str) -> config.Config:
    return config.load(values={"embedding": {"model": name}})


def test_a_published_model_is_found_by_its_name(store) -> None:
    model = note(store, "mine", registry.PUBLISHED)
    found = registry.located(asking("mine"), store)
    assert found.embedding.model == str(model.path)
    assert embedding_space(found.embedding) == embedding_space(asking("all-MiniLM-L6-v2").embedding)  # the weights decide, not the name
    (held,) = registry.trained(store)
    assert (held.steps, held.status, held.path) == (["crop"], "published", model.path)


def test_what_is_published_later_under_the_name_is_found_from_then_on(store) -> None:
    first = note(store, "mine", registry.PUBLISHED, revision="a" * 32)
    pinned = registry.located(asking("mine"), store)
    second = note(store, "mine", registry.FORCED, revision="b" * 32)
    assert registry.located(asking("mine"), store).embedding.model == str(second.path)
    assert registry.located(pinned, store).embedding.model == str(first.path)


def test_a_rejected_model_is_kept_and_not_found(store) -> None:
    model = note(store, "mine", registry.REJECTED)
    assert (model.path / "model.safetensors").is_file()
    assert registry.find(store, "mine") is None
    with pytest.raises(RequestError, match=r"was rejected: topics\.npmi 0\.1 is worse"):
        registry.located(asking("mine"), store)


def test_other_names_are_left_alone(store) -> None:
    note(store, "mine", registry.PUBLISHED)
    for name in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", "./mine", str(MINILM)):
        assert registry.located(asking(name), store).embedding.model == name


def test_noting_a_model_twice_notes_it_once(store) -> None:
    note(store, "mine", registry.PUBLISHED)
    note(store, "mine", registry.PUBLISHED)
    assert len(registry.trained(store)) == 1
    note(store, "mine", registry.FORCED)
    assert len(registry.trained(store)) == 2
    first = note(store, "mine", registry.PUBLISHED)  # once more what it was: it counts again
    assert len(registry.trained(store)) == 3
    assert registry.find(store, "mine").path == first.path


def test_a_store_that_was_moved_has_its_model_where_it_is_now(store, tmp_path) -> None:
    model = note(store, "mine", registry.PUBLISHED)
    store.publish(configuration=registry.located(asking("mine"), store).to_dict(), summary={})
    moved = Path(store.uri).rename(tmp_path / "moved")
    found = Store(moved).snapshots()[-1].configuration["embedding"]["model"]
    assert found != str(model.path)
    assert (Path(found) / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["", "a b", "../up", "-x", "a/b", "x" * 65, "all-MiniLM-L6-v2"])
def test_names_that_cannot_be_names(name) -> None:
    with pytest.raises(RequestError, match="name must"):
        registry.check_name(name)
