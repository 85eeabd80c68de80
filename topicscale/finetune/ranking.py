"""Multiple negatives ranking that knows classes: a text of the anchor's class is no negative of it."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss
from sentence_transformers.util import all_gather, all_gather_with_grad, get_rank


class Ranking(MultipleNegativesRankingLoss):
    """sentence-transformers' MultipleNegativesRankingLoss, in which ``labels`` may hold classes, int64 (n,) or (n, columns - 1).

    The first is the class of a row's anchor and positive, the others are those of its negatives. The softmax then leaves out the texts
    of other rows that are of the anchor's class, which are no negatives: of 64 rows of 77 classes, every second has such a one. Where
    the loss is symmetric, so it does with anchors. Without labels the loss is sentence-transformers' own.
    """

    def compute_loss_from_embeddings(self, embeddings: list[torch.Tensor], labels: Any) -> torch.Tensor:
        """Return the loss of (anchor, positive, negatives ...), each (n, d)."""
        if labels is None or labels.numel() == 0:
            result: torch.Tensor = super().compute_loss_from_embeddings(embeddings, labels)
            return result
        return _blockwise(self, embeddings[0], embeddings[1:], labels, len(labels), backward=False)


class CachedRanking(CachedMultipleNegativesRankingLoss):
    """sentence-transformers' CachedMultipleNegativesRankingLoss with the classes of :class:`Ranking`."""

    def calculate_loss(self, reps: list[list[torch.Tensor]], labels: Any = None, *, with_backward: bool = False) -> torch.Tensor:
        """Return the loss of the texts' vectors, which come in parts."""
        if labels is None or labels.numel() == 0:
            result: torch.Tensor = super().calculate_loss(reps, labels, with_backward=with_backward)
            return result
        columns = [torch.cat(part) for part in reps]
        return _blockwise(self.loss, columns[0], columns[1:], labels, self.mini_batch_size, backward=with_backward)


def _blockwise(
    loss: Any, anchors: torch.Tensor, docs: list[torch.Tensor], labels: torch.Tensor, rows: int, *, backward: bool
) -> torch.Tensor:
    """Return the mean loss over this worker's anchors, ``rows`` of them at a time."""
    size, first = len(anchors), 0
    classes = labels.view(size, -1)
    if loss.gather_across_devices:
        anchors, docs = all_gather_with_grad(anchors), [all_gather_with_grad(part) for part in docs]
        classes, first = all_gather(classes), get_rank() * size
    unknown = torch.full_like(classes[:, 0], -1)
    of_docs = torch.cat([classes[:, i] if i < classes.shape[1] else unknown for i in range(len(docs))])
    every_doc = torch.cat(docs)
    total = anchors.new_zeros(())
    for start in range(0, size, rows):
        at = torch.arange(first + start, first + min(start + rows, size), device=anchors.device)
        place = torch.arange(len(at), device=anchors.device)
        never = classes[at, :1] == of_docs
        never[place, at] = False
        forward = loss.similarity_fct(anchors[at], every_doc) * loss.scale
        terms = [torch.logsumexp(forward.masked_fill(never, -torch.inf), dim=1)]
        if "doc_to_query" in loss.directions:
            back = loss.similarity_fct(anchors, docs[0][at]).T * loss.scale
            terms.append(torch.logsumexp(back.masked_fill(never[:, : len(anchors)], -torch.inf), dim=1))
        part = -(forward[place, at] - torch.stack(terms).mean(0)).sum() / size
        if backward:
            part.backward()
            part = part.detach()
        total = total + part
    return total
