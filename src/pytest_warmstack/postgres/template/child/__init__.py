"""The child process that runs the project's code. The parent imports only its tables of names."""
