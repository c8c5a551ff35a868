"""What a detector finds as a loss: float and quantized predictions compared where the float network sees something."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edgeq.errors import UsageError
from edgeq.quant.losses import Suffix

THRESHOLD, MOST = 0.1, 500


@dataclass(frozen=True, eq=False)
class PositiveLoss:
    """Task-guided positive loss of LiDAR-PTQ (Zhou et al. 2024, arXiv 2401.15865), a criterion for `TaskLoss`.

    Positives are the cells of the heatmap that the float network scores at `threshold` or above, at most `most` a
    sample. There the scores are compared by a focal cross entropy towards the float score, and the boxes by their
    absolute difference; the rest of the map, nearly all of it background, does not count. Deviation: the focal form
    is that of quality focal loss (arXiv 2006.04388), whose targets are scores and not labels. `LossSum.of((1,
    TaskLoss(positives)), (1, mse))` adds the block's own error, as published.

    Args:
        suffix: The float network behind the block, `-> (batch, classes + boxes, rows, columns)`: logits of the heatmap
            first, then what the boxes are made of.
        predictions: Of the float network, `(samples, classes + boxes, rows, columns)`.
        classes: Channels of the heatmap.
        threshold: Least float score of a positive, 0 to 1.
        most: Positives of a sample at most, the highest scores first.
        boxes: Weight of the boxes beside the scores.

    Raises:
        UsageError: EQ-U831, an argument is out of bounds.
    """

    suffix: Suffix
    predictions: Tensor
    classes: int
    threshold: float = THRESHOLD
    most: int = MOST
    boxes: float = 1.0

    def __post_init__(self) -> None:
        channels = self.predictions.shape[1] if self.predictions.ndim == 4 else 0
        if not (1 <= self.classes <= channels and 0 <= self.threshold < 1 and self.most >= 1 and self.boxes >= 0):
            raise UsageError(
                f"predictions {tuple(self.predictions.shape)}, {self.classes} classes, threshold {self.threshold:g}",
                code="EQ-U831",
                hint="predictions are (samples, classes + boxes, rows, columns); the threshold is 0 to below 1",
            )

    def __call__(self, output: Tensor, index: Tensor) -> Tensor:
        """Mean over the positives of the batch; 0, still with a gradient path, where there are none."""
        found, wanted = self.suffix(output), self.predictions[index]
        scores = wanted[:, : self.classes].sigmoid()
        chosen = positives(scores, self.threshold, self.most)
        count = chosen.sum().clamp(min=1)
        logits = found[:, : self.classes]
        focus = (scores - logits.sigmoid()).abs().square()
        entropy = functional.binary_cross_entropy_with_logits(logits, scores, reduction="none")
        loss = (chosen * focus * entropy).sum() / count
        if found.shape[1] > self.classes:
            apart = (found[:, self.classes :] - wanted[:, self.classes :]).abs().mean(1, keepdim=True)
            cells = chosen.any(1, keepdim=True)
            loss = loss + self.boxes * (cells * apart).sum() / cells.sum().clamp(min=1)
        return loss


@torch.no_grad()
def positives(scores: Tensor, threshold: float, most: int) -> Tensor:
    """Which of the scores `(samples, classes, rows, columns)` are positives, of the same shape.

    Args:
        scores: 0 to 1.
        threshold: Least score.
        most: Of a sample; of equal scores at the limit all are kept.
    """
    flat = scores.flatten(1)
    limit = flat.topk(min(most, flat.shape[1]), dim=1).values[:, -1:]
    return ((flat >= threshold) & (flat >= limit)).reshape(scores.shape)
