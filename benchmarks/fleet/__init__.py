"""A fleet of machines converting one checkpoint, simulated from its plan.

``python -m benchmarks.fleet PLAN`` reads what ``fp8convert plan ... --out PLAN`` has written, or
what a conversion with ``--dry-run --json`` has printed, and says how long 1, 8 or 64 machines would
take and what holds them up. ``docs/scale.md`` explains the inputs, and has DeepSeek-V3's answers.
"""
