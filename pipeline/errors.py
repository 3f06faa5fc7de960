"""Every error that axonloom raises on purpose.

One base, few leaves. A message says what was found, what was expected and what to do next.
Errors that a wrong input or configuration causes derive from `InputError`: the command line
answers them with exit code 2, before anything is computed. `BlockError` and `StageError` mean that
a run began and failed: exit code 1.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of all errors of this project."""


class InputError(PipelineError, ValueError):
    """Something the user gave cannot be used; nothing was computed."""


class ConfigError(InputError):
    """The configuration contradicts itself or names unknown keys."""


class ShapeError(InputError):
    """Arrays disagree in shape, or have the wrong number of axes or channels."""


class DtypeError(InputError, TypeError):
    """An array has a data type that the operation does not take."""


class DataError(PipelineError, ValueError):
    """Voxels hold what they must not: NaN, values out of range, a corrupted chunk."""


class OutputExistsError(InputError, FileExistsError):
    """The output place holds the result of other parameters."""


class RunLockedError(PipelineError, RuntimeError):
    """Another process is writing to the same run directory."""


class BlockError(PipelineError, RuntimeError):
    """One block of a stage failed; the cause is chained."""


class StageError(PipelineError, RuntimeError):
    """A stage ended with failed blocks, or an aggregating stage found its inputs incomplete."""
