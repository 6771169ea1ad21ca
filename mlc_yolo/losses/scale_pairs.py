"""Which anchors see the same thing at full and at half scale (SED-style; a reconstruction, see `distillation`).

1. An input shrunk to exactly one half shows each object at half its size.
2. The level of stride s / 2 then has the cells that the level of stride s has at full scale: as many, and each cell's
   centre at half the coordinates.
3. Distances in strides are therefore equal, and so are deltas to priors whose sides double from level to level.
4. So level l at full scale pairs with level l - 1 at half scale; the finest level at full scale and the coarsest at
   half scale have no partner.

Class logits, distributions over distances in strides and (doubled) boxes compare directly. Two things are less strict:
torchvision rounds RetinaNet's anchors to whole pixels, so that paired ones differ by up to 2 px (IoU above 0.93); and
it takes the input's size by the map's, rounded down, for the stride, so that a level that does not tile the input may
not pair exactly (stride 128 on 576 px: 4 px).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class ScalePairs:
    """Paired anchors: the n-th of `full` and the n-th of `half` are partners. Slices are views, without a copy.

    Attributes:
        full: the paired anchors among those at full scale.
        half: their partners among the anchors at half scale.
    """

    full: slice
    half: slice

    def __len__(self) -> int:
        """Return the number of pairs."""
        return int(self.full.stop - self.full.start)


def scale_pairs(
    sizes: Sequence[tuple[int, int]],
    half_sizes: Sequence[tuple[int, int]],
    strides: Sequence[float],
    *,
    anchors_per_cell: int = 1,
) -> ScalePairs:
    """Pair the anchors of a head's outputs on an input and on the same input at half its size.

    Anchors are in the order of `grid_priors` and of every head here: level by level, finest first; within a level row
    by row; a cell's anchors together.

    Args:
        sizes: (H, W) in cells of each of L >= 2 levels at full scale.
        half_sizes: the same at half scale.
        strides: L input px per cell, each twice the one before; the same at both scales.
        anchors_per_cell: anchors of one cell, >= 1.

    Returns:
        The pairs. For full[n] = i and half[n] = j: twice the point of j is the point of i, and twice the stride of j is
        the stride of i.

    Raises:
        ValueError: the levels do not pair.

    Example:
        64 x 64 px and 32 x 32 px: 64 + 16 + 4 and 16 + 4 + 1 cells, of which 16 + 4 pair.

        >>> scale_pairs([(8, 8), (4, 4), (2, 2)], [(4, 4), (2, 2), (1, 1)], [8, 16, 32])
        ScalePairs(full=slice(64, 84, None), half=slice(0, 20, None))
    """
    sizes, half_sizes = [(h, w) for h, w in sizes], [(h, w) for h, w in half_sizes]
    if not len(sizes) == len(half_sizes) == len(strides) >= 2:
        raise ValueError(
            f"Expected at least two levels, as many at both scales, got {len(sizes)} and {len(half_sizes)} sizes and "
            f"{len(strides)} strides."
        )
    if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
        raise ValueError(f"Expected strides that double from level to level, got {list(strides)}.")
    # That the other levels pair does not show that the input was halved: 100 px and 52 px give the same ones.
    doubled = (2 * half_sizes[0][0], 2 * half_sizes[0][1])
    if sizes[0] != doubled or sizes[1:] != half_sizes[:-1]:
        raise ValueError(
            f"Levels of {sizes} cells and, at half scale, {half_sizes} do not pair: each level but the finest must "
            "have the cells of the next finer one at half scale, and the finest twice those at half scale. "
            f"Make height and width multiples of {2 * strides[-1]:g} px and halve them exactly."
        )
    cells = [height * width for height, width in sizes]
    start = cells[0] * anchors_per_cell
    pairs = sum(cells[1:]) * anchors_per_cell
    return ScalePairs(slice(start, start + pairs), slice(0, pairs))
