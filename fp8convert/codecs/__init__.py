"""One file per codec; see :mod:`.base` for the contract and docs/adding-a-codec.md for a walk."""
