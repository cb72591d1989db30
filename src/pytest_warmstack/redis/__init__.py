"""What happens inside a running Redis: a database of its own for every process."""
