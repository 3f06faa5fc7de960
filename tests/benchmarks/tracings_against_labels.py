"""What is lost when only tracings teach: the same network, data and steps, from both.

A phantom has both, true by construction. For each seed of the training two runs are made that
differ in `targets` alone; both choose their thresholds by the tracings of the training region, and
are scored by those of the other. The ratio of the normalized ERLs is the figure: the target is 0.9.

Tracings are drawn as tubes of the radii in the SWC files; `--shell-nm` says how far around them
nothing is taught. The phantom's radii are right, so a shell takes away what is known.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import machine
import yaml
from printing import print_table, save

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TARGET = 0.9
FIGURES = ("nerl", "edge_accuracy", "splits", "merges_total")


def main() -> None:
    """Make the phantom once, train on it in both ways for each seed, print both side by side."""
    options = _options()
    machine.print_facts()
    traced = {"source": "skeletons", "shell_nm": options.shell_nm}
    rows, figures = [], {}
    for seed in options.seeds:
        found = {
            name: _run(options, _name(name, seed, targets), seed, targets)
            for name, targets in (("labels", {"source": "labels"}), ("tracings", traced))
        }
        figures[seed] = found
        for name, scores in found.items():
            rows.append([f"seed {seed}, {name}", *(scores[figure] for figure in FIGURES)])
    ratio = _ratio(figures)
    print_table("trained on", ["", *FIGURES], rows)
    print(f"normalized ERL from tracings over that from labels: {ratio:.2f} (target {TARGET})")
    save(options.folder / "figures", "tracings_against_labels", {"runs": figures, "ratio": ratio})


def _name(name: str, seed: int, targets: dict[str, Any]) -> str:
    shell = targets.get("shell_nm")
    return f"{name}-{seed}" + (f"-shell-{shell:g}" if shell else "")


def _ratio(figures: dict[int, dict[str, dict[str, float]]]) -> float:
    """Ratio of the means over the seeds."""
    means = [
        statistics.mean(found[name]["nerl"] for found in figures.values())
        for name in ("tracings", "labels")
    ]
    return means[0] / means[1]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--config", type=Path, default=HERE / "tracings.yaml")
    parser.add_argument("--shell-nm", type=float, default=0.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args()


def _run(options: argparse.Namespace, name: str, seed: int, targets: dict[str, Any]) -> Any:
    """The scores of one run, which goes on where an earlier one was interrupted."""
    folder = options.folder.resolve() / "tracings_against_labels" / name
    values = yaml.safe_load(options.config.read_text())
    values |= {"name": name, "run_dir": str(folder), "targets": targets}
    values["train"] = values.get("train", {}) | {"seed": seed}
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-c", "from flows.cli import main; main()", "run", str(config)]
    subprocess.run(command, check=True, cwd=ROOT)
    overall = json.loads((folder / "metrics.json").read_text())["overall"]
    return {figure: overall[figure] for figure in FIGURES}


if __name__ == "__main__":
    main()
