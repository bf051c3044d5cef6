"""The Hugging Face hub: checkpoints read from it, targets uploaded to it."""
