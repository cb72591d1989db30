"""The child process that runs the project's own code; imported by nobody else."""
