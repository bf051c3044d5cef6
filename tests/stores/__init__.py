"""Checkpoints in object stores, against an emulator of S3 on this machine and fsspec's memory."""
