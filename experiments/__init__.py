"""The commands, and the packages that implement them."""

import sys
from importlib.util import find_spec

if find_spec("fcntl") is None:
    print(
        "error: fcntl, which locks a run's folder, is missing: use Linux or macOS", file=sys.stderr
    )
    sys.exit(2)
