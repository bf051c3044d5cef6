"""How uploads are given their bytes."""

from __future__ import annotations

from fp8convert.stores.uploads import Upload


def fed(upload: Upload, data: bytes, step: int = 100_000) -> None:
    """Write it, from one buffer that is used again and again, as the engine's are."""
    buffer = memoryview(bytearray(step))
    for begin in range(0, len(data), step):
        part = data[begin : begin + step]
        buffer[: len(part)] = part
        upload.write(buffer[: len(part)])
        buffer[:] = bytes(step)
