"""Tables for other programs: parquet files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.atomic import replacing


def write_parquet(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns of equal length; equal columns give equal bytes.

    Args:
        path: replaced if it exists.
        columns: by name, arrays or lists; None is a missing value, and a column that holds nothing
            else has type float64.
    """
    arrays = {name: pa.array(values) for name, values in columns.items()}
    for name, array in arrays.items():
        if pa.types.is_null(array.type):
            arrays[name] = array.cast(pa.float64())
    with replacing(path) as temporary:
        pq.write_table(pa.table(arrays), temporary)
