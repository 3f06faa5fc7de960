"""What a stage is: a name, what it reads and writes, its grid, and what one block does.

A stage knows nothing of workers, retries or progress (`workers/`), nor of the order of stages
(`flows/`). Everything that passes between stages is an artifact: a name that `Run` turns into a
path, either inside the run directory or, for foreign inputs, wherever the configuration says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.geometry import Block, BlockGrid
from pipeline.stages.block_tree import Grid
from pipeline.stages.run import Run


@dataclass(frozen=True)
class BlockResult:
    """What a block returns: a small status, never data.

    Attributes:
        state: "empty" means that nothing was written because there was nothing to write.
        stats: counts for the report, such as foreground voxels.
    """

    state: Literal["done", "empty"] = "done"
    stats: Mapping[str, float] = field(default_factory=dict)


def _nothing(_run: Run) -> None:
    return None


def _everything(_block: Block, _run: Run) -> bool:
    return True


def _no_files(_run: Run) -> Iterable[Path]:
    return ()


def _no_more(_run: Run) -> tuple[str, ...]:
    return ()


def _no_resources(_run: Run) -> dict[str, float]:
    return {}


@dataclass(frozen=True)
class Stage:
    """One row of the table of stages.

    Attributes:
        name: also the name of its ledger.
        version: raised whenever equal inputs give other output bytes.
        reads: artifacts it needs; their keys are part of its own.
        writes: artifacts it makes; removed when it starts anew.
        parameters: the part of the configuration that its output depends on.
        grid: how it cuts its work; a stage of the whole volume has a grid of one block, a reduction
            has rounds.
        process: what one block does: read, call one function, write. Running it twice gives the
            same bytes.
        create: makes empty outputs before the first block; runs in the driver.
        wanted: whether a block can hold anything; those that cannot are marked masked.
        check: refuses unusable input before anything is computed.
        progress: for stages of one long block: (steps done, steps in all), or None.
        resources: Dask resources that a worker must offer, such as {"GPU": 1}.
        files: single files that are there when it is finished.
        optional: artifacts read if the run has them.
        more: artifacts that it needs under some configurations only.
        within: artifacts of other stages that its output is added to: it goes away with them.
    """

    name: str
    version: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    parameters: Callable[[Run], Mapping[str, Any]]
    grid: Callable[[Run], Grid]
    process: Callable[[Block, Run], BlockResult]
    create: Callable[[Run], None] = _nothing
    wanted: Callable[[Block, Run], bool] = _everything
    check: Callable[[Run], None] = _nothing
    progress: Callable[[Run], tuple[int, int] | None] = _nothing
    resources: Callable[[Run], dict[str, float]] = _no_resources
    files: Callable[[Run], Iterable[Path]] = _no_files
    optional: tuple[str, ...] = ()
    more: Callable[[Run], tuple[str, ...]] = _no_more
    within: tuple[str, ...] = ()


def one_block(run: Run) -> BlockGrid:
    """The grid of a stage that treats the whole volume at once."""
    shape = run.shape
    return BlockGrid.over(shape, shape)
