"""RetinaNet, FCOS and RPN as Ultralytics models, from torchvision's parts."""
