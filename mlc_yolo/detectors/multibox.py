"""The pyramids of Mutual Guidance's detectors by name; `MultiBoxDetect` is the head of all of them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mlc_yolo.detectors.fssd import Concatenation, FusedPyramid
from mlc_yolo.detectors.pafpn import BottomUp, ContextEnhancement, TopDown
from mlc_yolo.detectors.rfb import RFBPyramid, rfb_widths


def _fssd(widths: list[int], width: int, levels: int) -> nn.Module:
    return FusedPyramid(Concatenation(widths, width), width, levels=levels)


def _retinanet_fssd(widths: list[int], width: int, levels: int) -> nn.Module:
    return nn.Sequential(_fssd(widths, width, levels), TopDown(width, levels=levels))


def _pafpn(widths: list[int], width: int, levels: int) -> nn.Module:
    return nn.Sequential(
        FusedPyramid(ContextEnhancement(widths, width), width, levels=levels),
        TopDown(width, levels=levels),
        BottomUp(width, levels=levels),
    )


def _rfbnet(widths: list[int], width: int, levels: int) -> nn.Module:
    return RFBPyramid(widths, width, levels=levels)


#: Builders `(widths of the sources, width, levels)` of pyramids with strides 8, 16, ..., by the detector's name.
#: The sources have strides 8, 16, ...; the levels come finest first.
PYRAMIDS: dict[str, Callable[[list[int], int, int], nn.Module]] = {
    "fssd": _fssd,
    "retinanet_fssd": _retinanet_fssd,
    "rfbnet": _rfbnet,
    "pafpn": _pafpn,
}


def level_widths(kind: str, width: int, levels: int) -> list[int]:
    """Return the channels of a pyramid's levels, finest first.

    Args:
        kind: one of `PYRAMIDS`.
        width: the configuration's.
        levels: L.
    """
    return rfb_widths(width, levels=levels) if kind == "rfbnet" else [width] * levels
