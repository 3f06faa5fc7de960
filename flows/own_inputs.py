"""Inputs that another run has made: its ledger knows what must be there.

A chunk that is absent reads as zeros. Of a volume of strangers nobody can tell whether it was ever
written; of one that lies in a run directory its ledger can.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError
from pipeline.stages import STAGES
from pipeline.stages.run import ARTIFACTS
from pipeline.storage.ledger import Ledger
from pipeline.storage.volume import Volume
from workers.runner import lost_chunk


def require_whole(path: Path) -> None:
    """Refuse a volume inside a run directory that is unfinished or has lost chunks.

    Raises:
        InputError: names the stage to finish, or the chunk and what to remove to make it again.
    """
    folder = path.resolve().parent
    for stage in STAGES:
        names = {ARTIFACTS[artifact] for artifact in stage.writes}
        file = folder / "ledger" / f"{stage.name}.jsonl"
        if path.name in names and file.is_file():
            _require_whole(path, Ledger(file), [folder / name for name in sorted(names)])


def _require_whole(path: Path, ledger: Ledger, outputs: list[Path]) -> None:
    if ledger.header is None or not ledger.complete:
        raise InputError(
            f"{path}: the stage that writes it is not finished (axonloom status {path.parent}); "
            "run it to its end first"
        )
    # Of precomputed segments an absent file means background.
    lost = lost_chunk(Volume.open(path), ledger) if path.suffix == ".zarr" else None
    if lost:
        remove = ", ".join(map(str, [ledger.path, *outputs]))
        raise InputError(
            f"{path}: chunk {lost[0]} is gone, but block {lost[1]} of stage {ledger.header.stage} "
            f"was written. To make it again remove {remove} and repeat the command that made it"
        )
