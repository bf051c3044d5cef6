"""What ``shard-for-tp`` must write: small sources, and an oracle that cuts whole tensors in loops.

The tables of names and axes are written down from the published scripts and from what Megatron's
column- and row-parallel layers are; nothing of the package computes what is expected.
"""
