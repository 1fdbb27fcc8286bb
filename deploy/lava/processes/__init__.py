"""Our own Lava processes, for what stock ones cannot say. Nothing else lives here: Lava executes what it finds."""

import deploy.lava.compat  # noqa: F401
