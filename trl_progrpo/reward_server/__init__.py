# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""A web server that scores images with reward functions. Needs the extra `server`."""

from .app import create_app
from .wire import Limits


__all__ = ["Limits", "create_app"]
