"""How well boxes sit, from onnxruntime alone: python onnx_placement.py best.onnx photo.jpg.

The file is made by `mlc-yolo export model=best.pt format=onnx placement=True`. The photo is stretched to the input.
"""

import ast
import sys

import cv2
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
metadata = session.get_modelmeta().custom_metadata_map
names, channels = ast.literal_eval(metadata["names"]), metadata["placement"].split(",")
height, width = session.get_inputs()[0].shape[2:]
photo = cv2.resize(cv2.imread(sys.argv[2]), (width, height))[..., ::-1].transpose(2, 0, 1)
output = session.run(None, {"images": photo[None].astype(np.float32) / 255})[0]  # (1, 4 + K + E, A)
boxes, scores, placement = np.split(output[0].T, (4, 4 + len(names)), 1)  # centre x, y, width, height in input px
boxes[:, :2] -= boxes[:, 2:] / 2  # the upper left corner, as OpenCV has it
kept = cv2.dnn.NMSBoxes(boxes, scores.max(1), 0.25, 0.7)
print(f"detections with a score of 0.25 or more: {len(kept)}")
for i in kept:  # of anchor i: a box, K scores, E channels of placement
    known = ", ".join(f"{name} {value:.2f}" for name, value in zip(channels, placement[i], strict=True))
    print(f"{names[scores[i].argmax()]} {scores[i].max():.2f} at {boxes[i].round(1)}: {known}")
