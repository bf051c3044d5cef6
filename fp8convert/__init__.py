"""Convert block-scaled FP8 checkpoints at disk speed."""
