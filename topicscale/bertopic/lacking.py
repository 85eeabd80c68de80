"""What BERTopic has and :class:`~topicscale.model.TopicModel` has not, and what serves here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from topicscale.errors import RequestError

_AGAIN = "Fit with other settings into the same store: what they do not touch is not done again"
_BY_DOCUMENT = "get_document_info() has each document's topic, its text and the kept columns of the input, to group by."
_REPORT = "`topicscale report --store STORE --output report.html` draws the map of documents and the topics."
_CONFIGURED = "model.config tells the class and its parameters: the objects are made, and fitted, in the workers."

PARAMETERS = {
    "calculate_probabilities": "There is one probability a document, the cosine to its topic. Leave it out.",
    "low_memory": "Memory is bounded by partitions. Leave it out.",
    "seed_topic_list": "Name topics in advance: zeroshot_topic_list.",
    "y": "Topics are found, not learnt from labels. `topicscale finetune --recipe mnr` trains an embedding model on them.",
    "images": "Documents are texts.",
}
"""Parameters, by name."""

ATTRIBUTES = {
    "save": "The store is the model: TopicModel.load(store) opens it. to_bertopic(folder) writes what BERTopic.load reads.",
    "push_to_hf_hub": "to_bertopic(folder) writes a folder for BERTopic, which can.",
    "partial_fit": "`topicscale update --input ... --store STORE` (jobs.update.update) adds documents.",
    "reduce_topics": f"{_AGAIN} (nr_topics).",
    "merge_topics": f"{_AGAIN} (nr_topics).",
    "delete_topics": f"{_AGAIN} (min_topic_size).",
    "reduce_outliers": f"{_AGAIN} (config={{'topics': {{'outliers': 0}}}}).",
    "update_topics": f"{_AGAIN} (vectorizer_model, ctfidf_model, top_n_words). label_topics() adds aspects.",
    "generate_topic_labels": "label_topics() describes topics, and set_topic_labels() names them.",
    "topics_over_time": f"{_BY_DOCUMENT} get_topic_trends() counts those of each update.",
    "topics_per_class": _BY_DOCUMENT,
    "hierarchical_topics": "topic_embeddings_ can be clustered.",
    "get_topic_tree": "topic_embeddings_ can be clustered.",
    "approximate_distribution": "transform() gives each document's topic and its cosine; topic_embeddings_ are all topics' vectors.",
    "c_tf_idf_": "The weights of all terms are the table topic_terms: topicscale.store.Store(store).read('topic_terms').",
    "topic_mapper_": "The table topic_lineage tells which local topics each topic is made of.",
    "representative_images_": PARAMETERS["images"],
    "get_params": "model.config.to_dict() has all settings.",
    **dict.fromkeys(
        ("embedding_model", "umap_model", "hdbscan_model", "vectorizer_model", "ctfidf_model", "representation_model"), _CONFIGURED
    ),
    **dict.fromkeys(
        (
            *("visualize_topics", "visualize_documents", "visualize_document_datamap", "visualize_hierarchical_documents"),
            *("visualize_term_rank", "visualize_topics_over_time", "visualize_topics_per_class", "visualize_distribution"),
            *("visualize_approximate_distribution", "visualize_hierarchy", "visualize_heatmap", "visualize_barchart"),
        ),
        _REPORT,
    ),
}
"""Methods and attributes, by name."""


def refuse(given: Mapping[str, Any], where: str) -> None:
    """Raise an error for keywords that ``where`` does not take, unless they have the value by which BERTopic asks for nothing.

    Raises
    ------
    RequestError
        BERTopic takes it.
    TypeError
        Nobody does.
    """
    for name, value in given.items():
        if name not in PARAMETERS:
            raise TypeError(f"{where} got an unexpected keyword argument {name!r}")
        if value is not None and value is not False:
            raise RequestError(f"{name} cannot be used. {PARAMETERS[name]}")
