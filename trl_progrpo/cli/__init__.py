# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The command line `trl-progrpo`. One module per subcommand; see `main.COMMANDS`."""
