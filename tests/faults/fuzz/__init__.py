"""Coverage-guided fuzzing of everything that reads a file somebody else wrote.

``targets`` are functions of bytes that raise where a promise is broken; ``corpus`` has inputs that
are worth mutating, ``crashes`` those that once broke a promise. ``mutation`` knows JSON, so that
what is tried is mostly well-formed and wrong in one place. ``python -m tests.faults.fuzz TARGET``
fuzzes with atheris; ``tests/faults/test_fuzz.py`` replays what is kept, without it.

An input that breaks a promise is made small and goes to ``crashes/TARGET``; the check that mends it
can be taken out by a function of ``planted``, and ``MENDED`` of the test says that it then breaks.
"""
