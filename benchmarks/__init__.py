"""Benchmarks: each compares two sides within one run and holds the ratio to a bound.

Run by ``python -m benchmarks [NAMES...]`` from the project's root. A new benchmark is a new
module with a function ``run(env, report)``, entered in :data:`benchmarks.__main__.NAMES`.
"""
