"""What a detector is judged by: divergence (Spearman) and COCO's AP and AR."""
