"""Facts of published checkpoints: what each declares, holds, and must be read as. No data.

A few stored tensors stand for all of their kind, at their true shapes. The declarations are reduced
to the fields that decide, and lists to entries that are typical or misleading; the files they come
from are named in each fact's ``source``.
"""
