# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`python -m trl_progrpo.cli`, for launchers that take a module."""

from .main import main


if __name__ == "__main__":
    raise SystemExit(main())
