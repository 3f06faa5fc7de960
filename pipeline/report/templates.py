"""How pages are made of the templates of this folder; all of them share one style sheet."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from pipeline.report.quantities import MISSING, decimal, duration, file_size, length


def render_template(name: str, **values: Any) -> str:
    """A page from a template and its values, which are escaped; equal values give equal text."""
    environment = Environment(
        loader=FunctionLoader(_read),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        decimal=decimal, duration=duration, file_size=file_size, length=length, MISSING=MISSING
    )
    return environment.get_template(name).render(**values)


def _read(name: str) -> str:
    return files("pipeline.report").joinpath(name).read_text(encoding="utf-8")
