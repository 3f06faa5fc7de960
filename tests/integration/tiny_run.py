"""A configuration that runs every stage within seconds; its scores mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tiny_values(run_dir: Path) -> dict[str, Any]:
    """Plain values, as a YAML file or a form would give them."""
    return {
        "name": "tiny",
        "run_dir": str(run_dir),
        "phantom": {"shape": [32, 48, 64], "neurons": 3, "seed": 3},
        "regions": {
            "train": {"begin": [0, 0, 0], "end": [32, 48, 32]},
            "score": {"begin": [0, 0, 32], "end": [32, 48, 64]},
        },
        "ingest": {"chunk": [32, 32, 32], "block": [32, 32, 32], "levels": 1},
        "network": {"width": 4, "levels": 2, "pool": [[1, 2, 2]]},
        "train": {
            "patch": [16, 16, 16],
            "batch": 1,
            "pretrain_steps": 2,
            "finetune_steps": 1,
            "threads": 1,
        },
        "predict": {"tile": [16, 32, 32], "context": [4, 8, 8]},
        "predict_block": [32, 32, 32],
        "segment": {"block": [32, 32, 32]},
        "skeletonize": {"block": [32, 32, 32]},
        "execution": {"kind": "serial"},
    }
