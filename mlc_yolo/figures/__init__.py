"""Commands that gather what a figure needs: assignments, guidance, misaligned detections, amplification."""
