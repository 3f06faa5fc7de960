"""The whole chain from affinities to segments, with its I/O, in nanoseconds of processor a voxel.

1. A tiny volume: the first run fills numba's cache. Each later one shows what starting costs; with
   N workers, what it costs to start all of them.
2. The volume, serial and with 1 and 2 workers, in turns, each several times and each beside its
   start: the least counts, as other work on the machine only ever adds. "Without start" is the
   difference of the two runs over the difference of their voxels.
3. Beside them in the same minutes: waterz on the whole array in memory, without I/O, and the floor,
   which is the chain's own I/O alone.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import machine
import numpy as np
from chain import (
    HIGH,
    LOW,
    THRESHOLD,
    TINY,
    TINY_VOXELS,
    ChainRun,
    common_options,
    run_chain,
    run_start,
    scratch,
    stage_counts,
)
from measuring import Usage, run_measured
from printing import print_table, save
from volumes import describe, kept_volume

from pipeline.geometry import BlockGrid, Triple
from pipeline.storage.volume import Volume

HERE = Path(__file__).parent
TARGET, AIM, VOLARA = 60.0, 40.0, 2080.0  # ns of processor a voxel
_IMPORTS = "import flows.cli, flows.launch, flows.runs"

Kind = int | None  # number of workers, None for serial


def name_of(kind: Kind) -> str:
    """How a way of running is called in the tables."""
    return "serial" if kind is None else f"{kind} worker{'s' * (kind > 1)}"


@dataclass
class Measured:
    """All runs of one way of running.

    Attributes:
        starts: runs on the tiny volume: what a run costs before it does anything.
        runs: runs on the volume.
    """

    starts: list[ChainRun] = field(default_factory=list)
    runs: list[ChainRun] = field(default_factory=list)

    @property
    def best(self) -> ChainRun:
        """The run that used the processor least."""
        return min(self.runs, key=lambda run: run.usage.cpu)

    @property
    def start_cpu(self) -> float:
        """Seconds of processor of the cheapest start."""
        return min(run.usage.cpu for run in self.starts)

    @property
    def cpu(self) -> float:
        """Seconds of processor of the cheapest run, without start."""
        return self.best.usage.cpu - self.start_cpu

    @property
    def start_wall(self) -> float:
        """Seconds of the quickest start."""
        return min(run.usage.wall for run in self.starts)

    @property
    def wall(self) -> float:
        """Seconds of the quickest run, without start."""
        return min(run.usage.wall for run in self.runs) - self.start_wall


Results = dict[Kind, Measured]


def measure_chain(
    affinities: Path, kept: Path, folder: Path, kinds: list[Kind], repeat: int, block: Triple | None
) -> Results:
    """Every way of running, in turns, each beside its start: other work comes and goes.

    The last run stays in `folder`/run.
    """
    found: Results = {kind: Measured() for kind in kinds}
    for _ in range(repeat):
        for kind, measured in found.items():
            measured.starts.append(run_start(kept, folder / "tiny", kind))
            measured.runs.append(run_chain(affinities, folder / "run", kind, block))
    return found


def measure_first(kept: Path, folder: Path) -> tuple[Usage, Usage]:
    """Importing alone, and the first run on the tiny volume, which fills numba's cache."""
    first = run_start(kept, folder / "first", None).usage
    imports = [run_measured([sys.executable, "-c", _IMPORTS]) for _ in range(2)]
    return min(imports, key=lambda usage: usage.cpu), first


def measure_waterz(python: str, affinities: Path, folder: Path) -> dict[str, Any] | None:
    """waterz on the whole array, in a process of its own; None if it is not installed."""
    code = "import sys, importlib.util as u; sys.exit(u.find_spec('waterz') is None)"
    try:
        run_measured([python, "-c", code])
    except SystemExit:
        print(f"waterz: not installed for {python}; pip install waterz==0.10.1 in an environment")
        print("of its own and give its interpreter as --waterz-python\n")
        return None
    folder.mkdir(parents=True)
    plain, figures = folder / "affinities.npy", folder / "waterz.json"
    volume = Volume.open(affinities)
    whole = np.lib.format.open_memmap(plain, "w+", np.uint8, (3, *volume.shape))
    for block in BlockGrid.over(volume.shape, (256, 256, 256)):
        whole[(slice(None), *block.write.slices)] = volume.read(block.write)
    whole.flush()
    del whole
    options = ["--low", LOW, "--high", HIGH, "--threshold", THRESHOLD]
    run_measured([python, HERE / "waterz_whole.py", plain, figures, *options])
    found: dict[str, Any] = json.loads(figures.read_text())
    return found


def measure_floor(affinities: Path, run: Path, folder: Path) -> dict[str, Any]:
    """The chain's I/O alone, in a process of its own."""
    folder.mkdir(parents=True)
    figures = folder / "floor.json"
    run_measured(
        [sys.executable, HERE / "io_alone.py", affinities, run, folder / "labels", figures]
    )
    found: dict[str, Any] = json.loads(figures.read_text())
    return found


def print_start(imports: Usage, first: Usage, found: Results) -> None:
    """What starting costs, so that it hides nowhere."""
    rows = [
        ["imports alone", imports.cpu, imports.wall],
        ["first run, serial (compiles what the cache lacks)", first.cpu, first.wall],
    ]
    rows += [[f"start, {name_of(k)}", m.start_cpu, m.start_wall] for k, m in found.items()]
    loading = found[None].start_cpu - imports.cpu
    rows.append(["of it, serial: numba's cache and tiny stages", loading, None])
    print_table(f"Starting: a volume of {TINY}, least of runs", ["", "CPU s", "wall s"], rows)


def print_chain(
    voxels: int, found: Results, waterz: dict[str, Any] | None, floor: dict[str, Any]
) -> None:
    """The main table: processor time a voxel against the anchors and the floor."""
    moving = (floor["read"] + floor["write"]) / voxels * 1e9
    each: list[tuple[str, float]] = []
    for kind, measured in found.items():
        each.append(
            (f"{name_of(kind)}, without start", measured.cpu / (voxels - TINY_VOXELS) * 1e9)
        )
        each.append((f"{name_of(kind)}, with start", measured.best.usage.cpu / voxels * 1e9))
    if waterz:
        name = f"waterz {waterz['version']}, in memory, no I/O"
        each.append((name, waterz["cpu"] / voxels * 1e9))
    each.append(("floor: the same I/O alone", moving))
    rows = [[n, ns, ns / TARGET, ns / AIM, ns / VOLARA, ns / moving] for n, ns in each]
    print_table(
        f"CPU from affinities to segments, with I/O ({voxels:,} voxels)",
        ["", "ns/voxel", "of 60 (target)", "of 40 (aim)", "of 2,080 (volara)", "of the floor"],
        rows,
    )


def print_stages(voxels: int, found: Results) -> None:
    """Seconds inside blocks."""
    best = [measured.best for measured in found.values()]
    rows: list[list[object]] = []
    for stage, seconds in best[0].stages.items():
        each = [run.stages.get(stage, 0.0) for run in best]
        rows.append([stage, best[0].blocks[stage], *each, seconds / voxels * 1e9])
    total = [sum(run.stages.values()) for run in best]
    rows.append(["all", None, *total, total[0] / voxels * 1e9])
    kinds = [f"{name_of(kind)}, s" for kind in found]
    print_table(
        "Seconds inside blocks, from the ledgers (wall, added over blocks)",
        ["stage", "blocks", *kinds, f"ns/voxel {name_of(next(iter(found)))}"],
        rows,
    )


def print_speed(found: Results) -> None:
    """Wall times, speed-up, memory."""
    rows = []
    for kind, measured in found.items():
        each = [run.usage for run in measured.runs]
        driver = max(usage.driver_peak for usage in each) / 2**20
        worker = max((p for usage in each for p in usage.worker_peaks), default=0) / 2**20
        cpu = " ".join(f"{usage.cpu:.1f}" for usage in each)
        walls = [measured.wall + measured.start_wall, measured.start_wall, measured.wall]
        speed = [_speed_up(found.get(base), measured) for base in (None, 1)]
        rows.append([name_of(kind), *walls, *speed, driver, worker or None, cpu])
    header = ["", "wall s", "of it start", "without", "to serial", "to 1 worker"]
    header += ["driver MiB", "worker MiB", "CPU s of each run"]
    print_table("Wall time (least of runs), speed-up without start, peak memory", header, rows)
    if any(measured.wall <= 0 for measured in found.values()):
        print("A run took less than its start: the machine is too busy, or the volume too small.\n")


def _speed_up(base: Measured | None, measured: Measured) -> float | None:
    if base is None or base.wall <= 0 or measured.wall <= 0:
        return None
    return base.wall / measured.wall


def print_floor(
    voxels: int, floor: dict[str, Any], serial: Measured, waterz: dict[str, Any] | None
) -> None:
    """What must move, and how fast this machine moves it."""
    plain = (3 + 8 * floor["label_volumes"]) * voxels
    copying = plain / floor["copy_bytes_per_second"]
    rows = [
        ["affinities stored, bytes/voxel", floor["read_bytes"] / voxels],
        ["labels stored, bytes/voxel", floor["written_bytes"] / voxels],
        ["reading affinities, ns/voxel", floor["read"] / voxels * 1e9],
        ["writing labels, ns/voxel", floor["write"] / voxels * 1e9],
        ["memcpy, GB/s of one core", floor["copy_bytes_per_second"] / 1e9],
        ["memcpy of all these uncompressed, ns/voxel", copying / voxels * 1e9],
        ["chain (serial, without start) to its I/O", serial.cpu / (floor["read"] + floor["write"])],
    ]
    if waterz:
        rows.append(["waterz, bytes/voxel above its input", waterz["peak_above_input"] / voxels])
    print_table("The floor", ["", ""], rows)


def main() -> None:
    """Measure and print."""
    parser = common_options(__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=512, help="edge of the volume, voxels")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each kind")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--waterz-python", default=sys.executable, help="interpreter with waterz")
    given = parser.parse_args()
    machine.print_facts()
    path, shares = kept_volume(given.folder, (given.size,) * 3, given.seed)
    print(f"volume: {describe(shares)}")
    print(f"low {LOW}, high {HIGH}, threshold {THRESHOLD}\n", flush=True)
    with scratch(given.folder, "chain") as folder:
        imports, first = measure_first(given.folder, folder)
        kinds: list[Kind] = [None, *given.workers]
        found = measure_chain(path, given.folder, folder, kinds, given.repeat, given.block)
        counts = stage_counts(folder / "run")
        floor = measure_floor(path, folder / "run", folder / "floor")
        waterz = measure_waterz(given.waterz_python, path, folder / "waterz")
    print_start(imports, first, found)
    print_chain(shares.voxels, found, waterz, floor)
    print_stages(shares.voxels, found)
    print_speed(found)
    print_floor(shares.voxels, floor, found[None], waterz)
    print("counted:", ", ".join(f"{k} {v:,.0f}" for k, v in sorted(counts.items()) if v >= 1))
    if waterz:
        print(f"waterz: {waterz['segments']:,} segments")
    figures = {
        "machine": machine.facts(),
        "volume": asdict(shares),
        "imports": asdict(imports),
        "first": asdict(first),
        "measured": {name_of(kind): asdict(measured) for kind, measured in found.items()},
        "waterz": waterz,
        "floor": floor,
        "counts": counts,
    }
    save(given.folder / "figures", f"segment_chain_{given.size}", figures)


if __name__ == "__main__":
    main()
