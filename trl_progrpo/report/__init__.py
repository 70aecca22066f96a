# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`report.html`: one file that shows what a run did, and opens without a server or a network."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from .run_folder import read_run


__all__ = ["read_run", "write_report"]

_SUFFIXES = (".html", ".htm", "")


def write_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """
    Writes the report of a run from what lies in its output folder.

    Curves, funnel and compute come from `trainer_state.json`, settings from `training_args.json`; images, one group's
    previews, command and versions from `report/run.json` where the run wrote it ([`~report.record.record_run`]). What is
    missing is left out. The page holds its style and images in itself and no script.

    Args:
        folder (`str` or `Path`): the `output_dir` of a run, or a checkpoint.
        output (`str` or `Path`, *optional*): HTML file to write; `report.html` in `folder` when unset.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: if `folder` is no run's, a file in it is broken, or `output` is of another format or cannot be written.
    """
    path = Path(output).expanduser() if output is not None else None
    if path is not None and path.suffix.lower() not in _SUFFIXES:
        raise ValueError(
            f"the report cannot be written to {str(path)!r}, for it is a page of HTML; let its name end with .html (a browser "
            "opens it, and prints it as PDF)."
        )
    # First of all: a wrong folder is told at once, and what follows takes seconds to import.
    run = read_run(folder)
    from jinja2 import Environment
    from markupsafe import Markup

    from ..hub import redact
    from .page import context

    # Prompts and names are the user's: whatever they hold is shown as it is.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    # Only what `charts` made, where matplotlib has escaped the text.
    environment.filters["drawing"] = Markup
    template = files("trl_progrpo").joinpath("templates/report.html").read_text(encoding="utf-8")
    page = redact(environment.from_string(template).render(context(run)))
    path = run.path / "report.html" if path is None else path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"the report cannot be written to {str(path)!r} ({error.strerror}); choose another file."
        ) from error
    return path
