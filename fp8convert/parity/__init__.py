"""Comparison of two checkpoints by what they compute: measures, verdict, control, reports."""
