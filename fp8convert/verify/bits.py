"""Which numbers of a stored dtype are NaN or infinite, by the bits of its published form.

IEEE 754 for 16 bits and more; Micikevicius et al., arXiv 2209.05433 for e4m3 (NaN only, 0x7F and
0xFF) and e5m2 (0x7C and above, of either sign); Noune et al., arXiv 2206.02915 for the FNUZ forms
(0x80 only); OCP MX v1.0 for e8m0 (0xFF only). F4 and F6 have neither and are not read.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

WIDE = ("F64", "F32", "F16", "BF16", "C64")
LIMITS = {"F8_E4M3": 0x7F, "F8_E5M2": 0x7C}  # the first code that is not finite, without its sign
FNUZ = ("F8_E4M3FNUZ", "F8_E5M2FNUZ")
E8M0 = "F8_E8M0"
READ = frozenset((*WIDE, *LIMITS, *FNUZ, E8M0))


def has_odd(dtype: str, values: Tensor) -> bool:
    """Whether a NaN or an infinity is among ``values`` (one at least). Allocates nothing."""
    import torch

    if dtype in WIDE:
        low, high = torch.aminmax(torch.view_as_real(values) if dtype == "C64" else values)
        return not (math.isfinite(low) and math.isfinite(high))  # a NaN makes both NaN
    raw = values.view(torch.uint8)
    if dtype == E8M0:
        return int(raw.max()) == 0xFF
    signed = raw.view(torch.int8)
    if dtype in FNUZ:
        return int(signed.min()) == -0x80
    return int(signed.max()) >= LIMITS[dtype] or int(raw.max()) >= 0x80 | LIMITS[dtype]


def first_odd(dtype: str, values: Tensor) -> tuple[int, str]:
    """Where the first NaN or infinity is, of all elements in a row, and how to name it."""
    import torch

    flat = values.reshape(-1)
    if dtype in WIDE:
        at = int((~torch.isfinite(flat)).nonzero()[0])
        return at, str(flat[at].item())
    raw = flat.view(torch.uint8)
    limit = LIMITS.get(dtype)
    odd = raw == (0x80 if dtype in FNUZ else 0xFF) if limit is None else (raw & 0x7F) >= limit
    at = int(odd.nonzero()[0])
    return at, f"code 0x{int(raw[at]):02x}, not a finite number,"


def decoded(dtype: str, scales: Tensor) -> Tensor:
    """Scales [n] as float32; of e8m0 only that they are above zero."""
    import torch

    flat = scales.reshape(-1)
    return torch.ones(flat.shape) if dtype == E8M0 else flat.to(torch.float32)


def first_uneven(scales: Tensor) -> int:
    """Where the first of float32 ``scales`` that is no power of two or zero is; or -1."""
    import torch

    uneven = (torch.frexp(scales).mantissa.abs() != 0.5) & (scales != 0)
    return int(uneven.nonzero()[0]) if bool(uneven.any()) else -1
