"""The logit of a product of two probabilities: a class score times a predicted IoU, as detections are ranked by.

With c and q the logits of class and IoU, z = c + q - log(1 + e^c + e^q) is the logit of sigmoid(c) * sigmoid(q). A
cross entropy of z trains both by what the ranking sees, at every anchor: an anchor without an object lowers whichever
of the two it can. Ours; the paper (MLC, arXiv 2103.08958, section 3.2) trains the two apart.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def product_logits(scores: Tensor, quality: Tensor) -> Tensor:
    """Return z = c + q - log(1 + e^c + e^q), the logit of sigmoid(c) * sigmoid(q).

    Evaluated as c - s(s(c) - q) with s(x) = log(1 + e^x), which neither overflows nor loses a small probability. For a
    large q it tends to c.

    Args:
        scores: c, logits of any shape and floating dtype.
        quality: q, logits that broadcast against `scores`.

    Returns:
        z, float32, of the shape both broadcast to; below c and q.

    Example:
        >>> import torch
        >>> product_logits(torch.zeros(1), torch.zeros(1)).sigmoid()  # a half of a half
        tensor([0.2500])
    """
    scores, quality = scores.float(), quality.float()
    return scores - F.softplus(F.softplus(scores) - quality)
