"""The reference models against transformers, and against themselves."""
