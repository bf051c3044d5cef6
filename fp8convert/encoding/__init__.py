"""Encoding: how a weight, decoded to float32, becomes codes and scales. Opens no file."""
