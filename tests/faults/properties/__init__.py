"""Random checkpoints: what must hold of every one, by hypothesis, and the campaign of all of it.

Drawn are ``codings`` of a matrix in every form (``forms``, ``forms_*``), ``checkpoints`` of these,
``models`` that can be cut for ranks, ``ways`` to run. What must hold: ``decoding``, ``encodings``,
``sharding``, ``sameness`` (any way, and after faults; ``verify``), ``defects`` (one is refused).
``campaign`` tries each with its share of the examples.
"""
