"""Detection heads."""

from mlc_yolo.heads.iou_aware import IoUAwareDetect, add_iou_channel, has_iou_channel, set_rescore

__all__ = ["IoUAwareDetect", "add_iou_channel", "has_iou_channel", "set_rescore"]
