"""The contrastive loss of texts that have several positives in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from sentence_transformers.util import all_gather, all_gather_with_grad

SCALE = 1 / 0.07
"""1 / temperature, as Zhang et al. (arXiv:2205.12914) have it."""


class NeighboursLoss(torch.nn.Module):
    """Minus the mean log-probability of a text's positives among all other texts of the batch (Khosla et al., NeurIPS 2020, "SupCon").

    Two texts are each other's positives where either is among the nearest of the other.

    Parameters
    ----------
    model : sentence_transformers.SentenceTransformer
    scale : float
        What similarities are multiplied by.
    compare : callable
        Similarities (a, b) of (a, d) and (b, d).
    gather : bool
        Whether texts are compared with those of all workers.
    """

    def __init__(self, model: Any, *, scale: float, compare: Callable[..., Any], gather: bool) -> None:
        super().__init__()
        self.model, self.scale, self.compare, self.gather = model, scale, compare, gather

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: torch.Tensor) -> torch.Tensor:
        """Return the loss.

        Parameters
        ----------
        sentence_features : two mappings
            The model's inputs for n anchors and n positives, of which each anchor's is one of its nearest texts.
        labels : torch.Tensor, int64 (n, 2 + 2 k)
            Numbers of the anchor, of its positive, of the anchor's k nearest texts and of the positive's.
        """
        texts = torch.cat([self.model(features)["sentence_embedding"] for features in sentence_features])
        ids, near = labels[:, :2].T.flatten(), torch.cat(labels[:, 2:].chunk(2, dim=1))
        others, other_ids, other_near = texts, ids, near
        if self.gather:
            others, other_ids, other_near = all_gather_with_grad(texts), all_gather(ids), all_gather(near)
        scores = self.compare(texts, others) * self.scale
        positive = (near[:, None, :] == other_ids[None, :, None]).any(2) | (other_near[None, :, :] == ids[:, None, None]).any(2)
        chance = scores.masked_fill(ids[:, None] == other_ids, -torch.inf).log_softmax(1).masked_fill(~positive, 0)
        loss: torch.Tensor = -(chance.sum(1) / positive.sum(1)).mean()
        return loss
