"""`python -m pytest_warmstack.cli`, which is the command `warmstack`."""

from __future__ import annotations

import sys

from pytest_warmstack.cli import main

if __name__ == "__main__":
    sys.exit(main())
