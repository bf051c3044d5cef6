"""Reference forward passes in plain torch: small, readable, run from disk a layer at a time.

A file an architecture; :mod:`.run` opens a checkpoint as a model. Shapes in comments: b batch,
l length, t tokens (b x l), h hidden, n heads, d channels of a head, v vocabulary, e experts.
"""
