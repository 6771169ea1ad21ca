"""Annotations of other formats turned into YOLO data sets: Pascal VOC XML and COCO JSON."""
