"""Numbers as people read them."""

from __future__ import annotations

import math

MISSING = "\N{EN DASH}"


def decimal(value: object, digits: int = 0) -> str:
    """A number with `digits` decimals and commas between thousands; a dash for none."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return MISSING
    text = f"{value:,.{digits}f}"
    # Avoids "-0.00".
    return text.lstrip("-") if not any(c in "123456789" for c in text) else text


def short(value: float) -> str:
    """A number of at most three digits with k, M, G or T: 950, 1.2k, 35M."""
    if not math.isfinite(value):
        return MISSING
    size = abs(value)
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= 0.9995 * unit:
            return (
                f"{value / unit:.3g}{name}" if size < 999.5 * unit else f"{value / unit:,.0f}{name}"
            )
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Seconds as two units: 45 ms, 12.3 s, 4 min 05 s, 3 h 12 min, 2 d 4 h."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 2880:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def file_size(size_bytes: int | None) -> str:
    """Bytes in powers of 1000: 850 B, 12.3 MB."""
    if size_bytes is None:
        return MISSING
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.2f} TB"


def length(nanometres: float | None) -> str:
    """A length in nm, µm or mm, three digits."""
    if nanometres is None or not math.isfinite(nanometres):
        return MISSING
    size = abs(nanometres)
    if size < 999.5:
        return f"{nanometres:.3g} nm"
    if size < 999_500:
        return f"{nanometres / 1e3:.3g} µm"
    return f"{nanometres / 1e6:,.3g} mm" if size < 999.5e6 else f"{nanometres / 1e6:,.0f} mm"


def scale_bar_nm(extent_nm: float) -> float:
    """A length for a scale bar: 1, 2 or 5 times a power of ten, up to a quarter of `extent_nm`."""
    power = 10.0 ** math.floor(math.log10(extent_nm / 4))
    return max(step * power for step in (1, 2, 5) if step * power <= extent_nm / 4 * (1 + 1e-9))
