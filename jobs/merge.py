"""``topicscale merge``: the topics of many stores in one, without their documents unless they are asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs import gather
from jobs.progress import Ui
from topicscale import federate, labels
from topicscale.cluster import Float32, unit
from topicscale.config import Config, InputConfig, TermsConfig
from topicscale.errors import RequestError, StoreError
from topicscale.leaf_terms import summed
from topicscale.models import PACKAGED, is_path
from topicscale.refine import ALL
from topicscale.sites import is_merged
from topicscale.store import Snapshot, Store, says
from topicscale.tables import LOGS, OUTLIER, TABLES
from topicscale.terms import name, top_terms

Match = Literal["embeddings", "terms"]
State = tuple[str, int, int]
"""A state of a site's topics: its id, the generation, and how many documents hold each term that is told."""
TERMS_SIMILARITY = 0.5
"""Cosine of c-TF-IDF rows at which topics are matched by their words, unless one is given."""
SHOWN = 10
"""Topics of a site that the report lists, of each kind."""


@dataclass(frozen=True)
class Input:
    """One store to be merged, pinned."""

    name: str
    store: Store
    snapshot: Snapshot
    given: bool = False
    """The name is not that of its folder."""


def merge(
    inputs: Sequence[str | Path | tuple[str, str | Path]],
    store: str | Path,
    *,
    similarity: float | Literal["auto"] = "auto",
    match: Match = "embeddings",
    documents: bool = False,
    ui: Ui | None = None,
) -> dict[str, Any]:
    """Merge the topics of stores into another and return what became of each one's.

    The inputs' ``site_topics`` and ``pilots``, and who gave their labels, are all that is read of them, unless documents are asked for.
    The result is a function of the set of their leaves: order, grouping (a merge of merges) and repetition change nothing, topic ids
    included.

    Parameters
    ----------
    inputs : sequence of str, Path or (name, path)
        Stores, each as a path or as ``NAME=PATH``; the folder's name is the site's otherwise.
    store : str
        The store to write; made if there is none. Merging the same inputs again changes nothing.
    similarity : float or "auto"
        Topics are joined while their mean cosine is at least this; ``auto`` takes the granularity that the sites found
        on their own documents.
    match : {"embeddings", "terms"}
        What topics are compared by.
    documents : bool, default=False
        Copy the documents of the inputs that hold any, with their vectors and topics: see :mod:`jobs.gather`. Where these have
        changed, earlier generations go, so that what a site has removed is gone here after the next merge.

    Raises
    ------
    RequestError
        Stores of different embedding models or term settings, copies of one store with different topics, or fewer than one input. With
        documents: sites of one name, or an input that is itself a merge with documents.
    StoreError
        An input is no store or holds no finished run; the output holds something else than a merge.
    """
    if similarity != "auto" and not 0.0 < float(similarity) < 1.0:
        raise RequestError(f"--similarity must be auto or between 0 and 1. Got {similarity!r} instead.")
    if match not in ("embeddings", "terms"):
        raise RequestError(f"--match must be embeddings or terms. Got {match!r} instead.")
    began = time.monotonic()
    opened = [_open(*given) if isinstance(given, tuple) else _given(str(given)) for given in inputs]
    if not opened:
        raise RequestError("merge must be given at least one store.")
    leaves = [_named(i, "site_topics") for i in opened]
    superseded = _superseded(opened, leaves)
    union = federate.unite(leaves, [_named(i, "pilots") for i in opened], [labels.written(i.store) for i in opened])
    if match == "embeddings":
        federate.check_spaces(union)
    height = threshold = None
    if similarity != "auto":
        threshold = float(similarity)
    elif match == "terms":
        threshold = TERMS_SIMILARITY
    else:
        height = federate.height(union)
    federation = federate.federate(union, height=height, similarity=threshold, match=match)
    target = _target(store, opened)
    terms = _terms_config(opened)
    copied = gather.sources([(i.name, i.store, i.snapshot) for i in opened], federation) if documents else []
    fp = federate.fingerprint(union, similarity, match, repr(terms), *gather.fingerprint_of(copied))
    with target.lock("merge"), target.without_trainings("merge"):
        last = target.snapshots()
        same = bool(last) and says(target.unit_version("generations", "generation"), fp)
        unfinished = target.files.exists(gather.MERGING)
        nothing = same and not unfinished
        centres = _centres(federation, one_space=len(union.spaces) == 1)
        named = labels.carried(target, federation.merged.keys, centres[1:])
        federation = federate.renamed(federation, named.names)
        if not nothing:
            if copied or target.has("documents"):
                target.files.write(gather.MERGING, b"")
            _write(target, federation, fp, named.names, centres, terms=terms, copied=copied, ui=ui or Ui("quiet"))
        conflicts, sites = federate.labels(federation)[1], federate.by_site(federation)
        summary = {
            "documents": int(sum(union.rows["size"].to_pylist())),
            "topics": federation.merged.number,
            "outliers": int(union.rows["size"].to_numpy()[union.outliers].sum()),
            "space": next(iter(union.spaces), ("", 0))[0] if len(union.spaces) < 2 else "",
            "model": ", ".join(sorted(set(union.spaces.values()))),
            "height": height,
            "similarity": threshold,
            "match": match,
            "exact_terms": federation.min_documents <= 1 and "approximate" not in federation.vocabulary,
            "min_documents": federation.min_documents,
            "sites": [
                {
                    "site": e["site"],
                    "documents": e["documents"],
                    "topics": len(e["shared"]) + len(e["only_here"]),
                    "shared": len(e["shared"]),
                }
                for e in sites
            ],
            "copied": gather.counted(target, copied),
            "merged": True,
            "written": dict(federation.union.written),
            "without_terms": federation.without_terms,
        }
        configuration = _configuration(opened, union.spaces).to_dict()
        without = LOGS if copied else (*LOGS, *gather.MADE)
        versions = {table: version for table in TABLES if table not in without and (version := target.version(table)) is not None}
        # the last generation names what a merge that was cut short has written over since
        again = None if same and unfinished else fp
        snapshot = target.publish(configuration=configuration, summary=summary, versions=versions, unit_fingerprint=again)
        gather.erase(target, unfinished=unfinished)
        target.files.remove(gather.MERGING)
        target.pin(snapshot.generation)
    return {
        "store": target.uri,
        "generation": snapshot.generation,
        "nothing_to_do": nothing,
        **summary,
        "names": dict(zip(*(target.read("topics")[column].to_pylist() for column in ("topic_id", "label")), strict=True)),
        "label_conflicts": dict(sorted(conflicts.items())),
        "names_alike": {topic: round(similarity, 4) for topic, similarity in named.alike.items()},
        "names_gone": named.gone,
        "superseded": superseded,
        "by_site": sites,
        "seconds": round(time.monotonic() - began, 3),
    }


def describe(found: Mapping[str, Any]) -> str:
    """Return the merge report that a person reads."""
    threshold, documents, least = found["similarity"], found["documents"], found["min_documents"]
    how = f"similarity {threshold}" if threshold is not None else f"height {found['height']:.4g} as the sites found it"
    held = ", which already held this merge" if found["nothing_to_do"] else ""
    lines = [
        f"{found['topics']:,} topics of {documents:,} documents at {len(found['by_site']):,} sites "
        f"({found['outliers'] / max(documents, 1):.1%} outliers), matched by {found['match']}, {how} "
        f"-> {found['store']} (generation {found['generation']}{held})"
    ]
    if not found["exact_terms"]:
        what = (
            f"Terms in fewer than {least:,} documents of a site's topic were left out before they got here"
            if least > 1
            else "Some term counts were reconstructed from weights"
        )
        lines.append(f"{what}: sizes and vectors add up exactly, term counts do not.")
    if found["without_terms"]:
        lines.append(f"{found['without_terms']:,} topics came without any term: nothing could be matched with them, so each stays alone.")
    for uri, sites in found["superseded"].items():
        of = f"{', '.join(sites[:SHOWN])}{' ...' if len(sites) > SHOWN else ''}"
        lines.append(f"{of} of {uri} counts for nothing: another input is a later or fuller state of the same store (a copy keeps its id).")
    if found["copied"]:
        lines.append(
            f"Copied {found['copied']['documents']:,} documents of {found['copied']['sites']:,} sites"
            + ("; other inputs hold none" if found["copied"]["sites"] < len(found["by_site"]) else "")
        )
    for entry in found["by_site"]:
        shared, alone = entry["shared"], entry["only_here"]
        lines.append(
            f"\n{entry['site']}: {entry['documents']:,} documents, {len(shared) + len(alone):,} topics: "
            f"{len(shared):,} matched others', {len(alone):,} found only here"
        )
        for kind, leaves in (("matched", shared), ("only here", alone)):
            for leaf in leaves[:SHOWN]:
                label = found["names"].get(leaf["topic_id"], "")
                lines.append(f"  {kind:<9} {leaf['size']:>9,} documents, similarity {leaf['similarity']:.3f} -> {label}")
            if len(leaves) > SHOWN:
                lines.append(f"  {kind:<9} ... and {len(leaves) - SHOWN:,} more (all are in the table topic_lineage)")
    for topic, lost in found["label_conflicts"].items():
        lines.append(f"\nTopic {topic} is called {found['names'][topic]!r}; other sites call it {', '.join(map(repr, lost))}")
    lines += [
        f"\nTopic {topic} keeps the name {found['names'][topic]!r} that was given here, though its documents have changed "
        f"(similarity {similarity:.3f})"
        for topic, similarity in found["names_alike"].items()
    ]
    lines += [
        f"\nThe topic that was named {label!r} here is gone, or made of other documents now: look for it, and name it again"
        for label in found["names_gone"]
    ]
    return "\n".join(lines)


def _given(text: str) -> Input:
    label, sep, path = text.partition("=")
    return _open("", text) if not sep or "://" in label or Path(text).exists() else _open(label, path)


def _open(label: str, path: str | Path) -> Input:
    store = Store(path)
    return Input(label or store.name, store, store.pin(exports=True), bool(label))


def _named(source: Input, table: str) -> pa.Table:
    """Return a store's rows, its own carrying its name: those it got from other sites have theirs.

    An export's rows have the name that its site gave itself. Where all are of one site, a name given here is the site's all the same.
    """
    rows = source.store.read(table)
    own = pc.equal(rows["site_id"], "")
    filled = {"site": source.name, "site_id": source.store.site_id, "generation": source.snapshot.generation}
    for column, value in filled.items():
        rows = rows.set_column(rows.schema.get_field_index(column), column, pc.if_else(own, value, rows[column]))
    if source.given and pc.count_distinct(rows["site_id"]).as_py() == 1:
        rows = rows.set_column(rows.schema.get_field_index("site"), "site", pa.repeat(source.name, rows.num_rows))
    return rows.cast(TABLES[table].schema)


def _target(uri: str | Path, opened: Sequence[Input]) -> Store:
    target = Store(uri, create=True)
    if any(target.uri == source.store.uri for source in opened):
        raise RequestError(f"--store must be another store than the inputs. Got {target.uri!r} instead.")
    snapshots = target.snapshots()
    # a merge that was killed before it published has written these before any document
    begun = target.unit_version("site_topics", "merge") is not None
    if not (is_merged(snapshots[-1]) if snapshots else begun or not target.has("documents")):
        raise StoreError(f"The store {target.uri!r} holds a run of its own. Name a new folder for the merge.")
    return target


def _terms_config(opened: Sequence[Input]) -> TermsConfig:
    """Return how terms are weighted and shown: as the inputs do, where they agree."""
    found = {Config.from_dict(source.snapshot.configuration).terms for source in opened}
    weights = {(terms.bm25_weighting, terms.reduce_frequent_words) for terms in found}
    bm25, reduced = weights.pop() if len(weights) == 1 else (False, False)
    return TermsConfig(bm25_weighting=bm25, reduce_frequent_words=reduced, top_n_words=max(terms.top_n_words for terms in found))


def _superseded(opened: Sequence[Input], leaves: Sequence[pa.Table]) -> dict[str, list[str]]:
    """Return, by input, the sites that count for nothing in it: another input has a later state, or a fuller one under another name.

    Raises
    ------
    RequestError
        Two inputs hold one state of a site and not the same topics: copies of its store that went different ways, or exports of such.
        Only one would count, or both would be mixed, without a word.
    """
    held = [(source, _states(rows)) for source, rows in zip(opened, leaves, strict=True)]
    first: dict[State, tuple[str, set[str], set[str], bool]] = {}
    names: dict[State, set[str]] = {}
    best: dict[str, tuple[int, int]] = {}
    for source, states in sorted(held, key=lambda one: is_merged(one[0].snapshot)):
        merged, everything = is_merged(source.snapshot), set().union(*(keys for _, keys in states.values()))
        for state, (site, keys) in states.items():
            other, theirs, all_theirs, merged_too = first.setdefault(state, (source.store.uri, keys, everything, merged))
            mine_alone, theirs_alone = keys - all_theirs, theirs - everything
            # a merge may hold fewer, as what two sites share is there once, as one site's
            if (mine_alone and theirs_alone) or (mine_alone and not merged_too) or (theirs_alone and not merged):
                raise RequestError(
                    f"{other!r} and {source.store.uri!r} hold copies of one store (the same id) with different topics of {site!r}. Make "
                    "one of the copies anew: run into a new folder instead of a copied one."
                )
            names.setdefault(state, set()).add(site)
            site_id, generation, least = state
            best[site_id] = max(best.get(site_id, (generation, -least)), (generation, -least))
    found: dict[str, list[str]] = {}
    for source, states in held:
        for (site_id, generation, _), (site, _) in states.items():
            newest, fullest = best[site_id]
            # an export beside its store is nothing to be told of
            if generation < newest or site not in names[site_id, newest, -fullest]:
                found.setdefault(source.store.uri, []).append(site)
    return found


def _states(rows: pa.Table) -> dict[State, tuple[str, set[str]]]:
    """Return the states of sites that an input's leaves tell of, each with the site's name and the leaves' contents."""
    found: dict[State, tuple[str, set[str]]] = {}
    columns = (rows[column].to_pylist() for column in ("site_id", "generation", "min_documents", "site"))
    for site_id, generation, least, site, key in zip(*columns, federate.content_keys(rows), strict=True):
        found.setdefault((site_id, generation, least), (site, set()))[1].add(key)
    return found


def _configuration(opened: Sequence[Input], spaces: Mapping[tuple[str, int], str]) -> Config:
    """Return what a model of the merged store needs: the embedding model, where there is one, and the terms' settings."""
    configs = [Config.from_dict(source.snapshot.configuration) for source in opened]
    first = min(configs, key=lambda config: (_needs(config.embedding.model), repr(config.embedding)))
    # what this store's own terms are weighted and shown by, which a merge of it goes on with
    own = _terms_config(opened)
    terms = replace(
        min((c.terms for c in configs), key=repr),
        bm25_weighting=own.bm25_weighting,
        reduce_frequent_words=own.reduce_frequent_words,
        top_n_words=own.top_n_words,
    )
    if len(spaces) > 1:
        return Config(terms=terms)
    # vectors that came with the documents: no model can embed others
    given = min((c.input.embedding_column for c in configs if c.input.embedding_column is not None), default=None)
    return Config(input=InputConfig(embedding_column=given), embedding=first.embedding, terms=terms)


def _needs(model: str) -> int:
    """Return by how much it takes to find a model here: nothing, the hub, a name that a folder had elsewhere."""
    if model.removeprefix("sentence-transformers/") in PACKAGED or os.path.isdir(os.path.expanduser(model)):
        return 0
    return 1 if "/" in model and not is_path(model) else 2


def _write(
    target: Store,
    found: federate.Federation,
    fp: str,
    given: Mapping[int, str],
    centres: Float32,
    *,
    terms: TermsConfig,
    copied: Sequence[gather.Source],
    ui: Ui,
) -> None:
    rows = found.union.rows
    target.create_table("topic_terms")

    def put(table: str, content: pa.Table) -> None:
        target.replace(table, content.cast(TABLES[table].schema), stage="merge", unit_fingerprint=fp)

    put("site_topics", rows)
    put("pilots", found.union.pilots)
    weighted = summed(rows, found.topics, terms)
    put("topic_terms", weighted)
    words = {topic: [term for term, _ in best] for topic, best in top_terms(weighted.to_batches(), terms.top_n_words).items()}
    names, conflicts = federate.labels(found)
    names |= given  # the outliers' too
    if copied:
        gather.copy(target, copied, centres[1:], fp=fp, ui=ui)
        shown = gather.representatives(target, found.merged.number)
        gather.place(target, fp=fp)
    else:
        gather.clear(target)
        shown = [[]] * found.merged.number
    put("topics", _topics(found, words, names, centres, shown))
    put("topic_lineage", _lineage(found))
    put("topic_labels", _labels(found, words, names, conflicts, given))


def _centres(found: federate.Federation, *, one_space: bool) -> Float32:
    """Return each topic's mean direction, the outliers' first: float32 (topics + 1, d), with d = 0 where there are more spaces than one."""
    if not one_space:
        return np.zeros((found.merged.number + 1, 0), np.float32)
    vectors = federate.vector_sums(found.union.rows)
    sums = np.zeros((found.merged.number + 1, vectors.shape[1]))
    np.add.at(sums, found.topics + 1, vectors)
    return unit(sums).astype(np.float32)


def _topics(
    found: federate.Federation,
    words: Mapping[int, list[str]],
    names: Mapping[int, str],
    centres: Float32,
    shown: Sequence[list[str]],
) -> pa.Table:
    sizes = found.union.rows["size"].to_numpy()
    described = []
    for topic in range(OUTLIER, found.merged.number):
        members = np.flatnonzero(found.topics == topic)
        if len(members) == 0:
            continue
        described.append(
            {
                "topic_id": topic,
                "topic_key": "" if topic == OUTLIER else found.merged.keys[topic],
                "kind": "outliers" if topic == OUTLIER else "found",
                "size": int(sizes[members].sum()),
                "reference_vector": centres[topic + 1].tolist(),
                "cutoff": None if topic == OUTLIER else ALL,
                "core": None if topic == OUTLIER else ALL,
                "parent_id": None,
                "label": names.get(topic) or name(topic, words.get(topic, [])),
                "keywords": words.get(topic, []),
                "representative_docs": [] if topic == OUTLIER else shown[topic],
            }
        )
    return pa.Table.from_pylist(described, schema=TABLES["topics"].schema)


def _lineage(found: federate.Federation) -> pa.Table:
    rows = found.union.rows
    n = rows.num_rows
    return pa.table(
        {
            "site": rows["site"],
            "partition_id": pa.repeat("", n),
            "local_topic": pa.nulls(n, pa.int32()),
            "topic_key": rows["topic_key"],
            "size": rows["size"],
            "topic_id": pa.array(found.topics, pa.int32()),
            "similarity": pa.array(found.similarities),
        }
    )


def _labels(
    found: federate.Federation,
    words: Mapping[int, list[str]],
    names: Mapping[int, str],
    conflicts: Mapping[int, list[str]],
    given: Mapping[int, str],
) -> pa.Table:
    described: list[dict[str, Any]] = []
    for topic in sorted(set(map(int, found.topics))):
        terms = words.get(topic, [])
        described.append({"topic_id": topic, "aspect": "ctfidf", "label": name(topic, terms), "terms": terms, "status": "ok", "detail": ""})
        if topic in given:
            described.append(labels.label_row(topic, given[topic]))
        elif topic in names:
            others = conflicts.get(topic, [])
            detail = f"other sites call it: {'; '.join(others)}" if others else ""
            aspect = found.union.written.get(names[topic], labels.ASPECT)
            described.append({"topic_id": topic, "aspect": aspect, "label": names[topic], "terms": [], "status": "ok", "detail": detail})
    return pa.Table.from_pylist(described, schema=TABLES["topic_labels"].schema)
