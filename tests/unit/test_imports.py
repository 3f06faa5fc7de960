"""The drawing of the house: imports point downward, and each heavy dependency has one home."""

import ast
import importlib
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Which of our own packages each may import, itself included; the longest matching prefix counts.
GROUND = ("pipeline.errors", "pipeline.geometry", "pipeline.settings", "pipeline.threads")
ALLOWED = {
    "pipeline.errors": (),
    "pipeline.settings": ("pipeline.errors", "pipeline.settings"),
    "pipeline.geometry": GROUND,
    "pipeline.threads": (),
    "pipeline.arrays": (*GROUND, "pipeline.arrays"),
    "pipeline.storage": (*GROUND, "pipeline.arrays", "pipeline.storage"),
    "pipeline.learning": (*GROUND, "pipeline.arrays", "pipeline.storage", "pipeline.learning"),
    "pipeline.report": (*GROUND, "pipeline.arrays", "pipeline.storage", "pipeline.report"),
    "pipeline.config": (
        *GROUND,
        "pipeline.arrays.skeleton_settings",
        "pipeline.arrays.waterz_process",
        "pipeline.learning.loss_settings",
        "pipeline.learning.settings",
        "pipeline.storage.atomic",
    ),
    "pipeline.stages": ("pipeline",),
    "workers": ("pipeline", "workers"),
    "flows": ("pipeline", "workers", "flows"),
    "pipeline": (),
}

# Where each heavy dependency may be imported.
HOMES = {
    "prefect": ("flows",),
    "typer": ("flows",),
    "dask": ("workers.executors",),
    "distributed": ("workers.executors",),
    "dask_jobqueue": ("workers.executors",),
    "dask_kubernetes": ("workers.executors",),
    "zarr": ("pipeline.storage",),
    "tensorstore": ("pipeline.storage",),
    "cloudvolume": ("pipeline.storage",),
    "pyarrow": ("pipeline.storage",),
    "tifffile": ("pipeline.storage",),
    "torch": ("pipeline.learning",),
    "monai": ("pipeline.learning",),
    "safetensors": ("pipeline.learning",),
    "kimimaro": ("pipeline.arrays",),
    "numba": ("pipeline.arrays", "pipeline.learning"),
    "waterz": ("pipeline.arrays",),
    "skimage": ("pipeline.arrays",),
    "tensorboard": ("pipeline.learning",),
    "matplotlib": ("pipeline.report",),
    "neuroglancer": ("pipeline.report",),
    "yaml": ("pipeline.config",),
}


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package in ("pipeline", "workers", "flows"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, path: Path) -> list[str]:
    """Every module that the source names in an import, wherever in the file it stands."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            # `from pipeline import stages` names the submodule, not only the package.
            inner = [f"{base}.{alias.name}" for alias in node.names]
            found += [name for name in inner if name in modules()] or [base]
    return found


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def row_of(module: str) -> tuple[str, ...]:
    return ALLOWED[max((p for p in ALLOWED if inside(module, p)), key=len)]


def ours(name: str) -> bool:
    return name.split(".")[0] in ("pipeline", "workers", "flows")


def test_the_walk_sees_the_whole_project():
    assert {"pipeline.geometry", "workers.runner", "flows.cli", "pipeline.stages"} <= set(modules())
    assert "pipeline.learning.train" in imports_of(
        "pipeline.stages.train", modules()["pipeline.stages.train"]
    ), "imports inside functions count"


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_downward(module):
    upward = [
        name
        for name in imports_of(module, modules()[module])
        if ours(name) and not any(inside(name, package) for package in row_of(module))
    ]
    assert not upward, f"{module} must not import {upward}"


@pytest.mark.parametrize("dependency", sorted(HOMES))
def test_a_heavy_dependency_has_one_home(dependency):
    strangers = [
        module
        for module, path in modules().items()
        if any(inside(name, dependency) for name in imports_of(module, path))
        and not any(inside(module, home) for home in HOMES[dependency])
    ]
    assert not strangers, f"{dependency} is at home in {HOMES[dependency]}, found in {strangers}"


@pytest.mark.parametrize("module", sorted(modules()))
def test_every_module_can_be_imported(module):
    with warnings.catch_warnings():
        # What other packages warn about when they are imported is not ours to mend.
        warnings.simplefilter("ignore")
        importlib.import_module(module)


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_array_functions_need_nothing_but_arrays():
    names = [name for name in modules() if inside(name, "pipeline.arrays")]
    loaded = loaded_after(f"import {', '.join(names)}")
    assert not loaded & {"torch", "zarr", "tensorstore", "distributed", "prefect", "cloudvolume"}


def test_help_and_bad_commands_do_not_wait_for_heavy_imports():
    loaded = loaded_after("import flows.cli")
    assert not loaded & {"torch", "prefect", "distributed", "matplotlib", "neuroglancer"}
