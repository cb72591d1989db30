"""The application's settings, read from the environment when this is imported."""

import os

DATABASE_URL = os.environ["DATABASE_URL"]
