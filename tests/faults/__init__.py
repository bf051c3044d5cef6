"""Faults that are injected on purpose: what docs/reliability.md promises is checked here.

``python -m tests.faults`` prints the table; ``campaigns`` lists its rows, ``tally`` counts one,
``test_campaigns`` runs a slice of each. Every campaign has controls: broken tools that must lose.

- Where: ``lab`` (small models, seven works, expected bytes), ``conftest``, ``..crash`` (children).
- With what: ``shim`` (the library that counts and spoils system calls), ``tampering`` (what is done
  to a child), ``breaks`` (broken tools), ``damages`` (what may become of a file), ``cgroup``,
  ``mounts``, ``disk`` (ext4 images).
- Kills and signals: ``chain`` (one target, disturbed again and again), ``kills``, ``signals``;
  ``terminal`` (keys pressed), with ``screen`` and ``leader`` (its shell); ``together`` (two runs).
- What a run begins with: ``scenes``; ``test_redone`` (damaged files), ``test_resumption`` (another
  run), ``test_places`` (targets and states that are somebody's).
- Power loss: ``power`` on an orderly disk, ``powercache`` on ``cachedisk``, which has a cache;
  ``stepping`` cuts, ``aftermath`` judges.
- Resources: ``space``, ``memory``, ``errors``, ``transfers`` (short, EINTR), ``shrinking`` (files
  cut short while read).
- Input: ``malformed`` (tables), ``properties`` (random checkpoints), ``fuzz``, ``hostile`` with
  ``hostile_inputs``, ``armed`` (code and links in a source), ``tracing`` (strace).
- Output: ``flips`` (damage that ``verify`` must find).
"""
