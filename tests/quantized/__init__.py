"""What ``quantize`` must write: sources, an oracle from the formulas, and readers of the output.

NumPy, ml_dtypes and torch compute what is expected; the package is only run (``sources.Runs``).
"""
