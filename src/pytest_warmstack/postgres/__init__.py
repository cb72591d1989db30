"""What happens inside a running PostgreSQL: the template, and a clone for every test."""
