"""The contrastive loss of texts that have several positives in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from sentence_transformers.util import all_gather, all_gather_with_grad

SCALE = 1 / 0.07
"""1 / temperature, as Zhang et al. (arXiv:2205.12914) have it."""


class NeighboursLoss(torch.nn.Module):
    """Minus the mean log-probability of an anchor's positives among all other texts of the batch (Khosla et al., NeurIPS 2020, "SupCon").

    Parameters
    ----------
    model : sentence_transformers.SentenceTransformer
    scale : float
        What similarities are multiplied by.
    compare : callable
        Similarities (a, b) of (a, d) and (b, d).
    gather : bool
        Whether anchors are compared with the texts of all workers.
    """

    def __init__(self, model: Any, *, scale: float, compare: Callable[..., Any], gather: bool) -> None:
        super().__init__()
        self.model, self.scale, self.compare, self.gather = model, scale, compare, gather

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of anchors and positives.

        Parameters
        ----------
        sentence_features : two mappings
            The model's inputs for n anchors and n positives.
        labels : torch.Tensor, int64 (n, 2 + k)
            Numbers of the anchor, of its positive, and of all its neighbours, of which the positive is one. A number is one text's.
        """
        anchors, positives = (self.model(features)["sentence_embedding"] for features in sentence_features)
        texts, known = torch.stack([anchors, positives], 1), labels[:, :2].contiguous()
        if self.gather:
            texts, known = all_gather_with_grad(texts), all_gather(known)
        known = known.flatten()
        scores = self.compare(anchors, texts.flatten(0, 1)) * self.scale
        near = (labels[:, 2:, None] == known).any(1)
        itself = labels[:, :1] == known
        chance = scores.masked_fill(itself, -torch.inf).log_softmax(1).masked_fill(~near, 0)
        loss: torch.Tensor = -(chance.sum(1) / near.sum(1)).mean()
        return loss
