"""Object stores, through fsspec: checkpoints read from them, targets written to them."""
