"""The boxes in which a foreign volume is stored: reading one reads all of it."""

from __future__ import annotations

from pathlib import Path

from pipeline.geometry import Triple
from pipeline.storage.source import TiffSource, open_source


def chunk_shape(path: Path) -> Triple:
    """Extent z, y, x: of a chunk; of a plane for TIFF; of all for an array kept in memory."""
    source = open_source(path)
    if isinstance(source, TiffSource):
        return (1, *source.shape[1:])
    found: Triple = getattr(source, "chunks", source.shape)
    return found
