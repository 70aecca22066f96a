# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What can be seen of a run while it is going on: pictures for trackers, and a table for the terminal."""

from .completions import CompletionsCallback, print_completions
from .group import Checkpoint, GroupWatch, WatchedGroup
from .trackers import TrackerImagesCallback, check_trackers, send_images


__all__ = [
    "Checkpoint",
    "CompletionsCallback",
    "GroupWatch",
    "TrackerImagesCallback",
    "WatchedGroup",
    "check_trackers",
    "print_completions",
    "send_images",
]
