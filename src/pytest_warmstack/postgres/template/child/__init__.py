"""The child process that runs the project's own code. Only that process imports this package."""
