"""Tiny checkpoints in every format the converter reads, and what they decode to.

Nothing here imports the package under test: the values come from published formulas written as
plain loops (``formulas``), and ``test_oracles`` checks those against compressed-tensors,
transformers, torch and ml_dtypes wherever one of them runs on a CPU.
"""
