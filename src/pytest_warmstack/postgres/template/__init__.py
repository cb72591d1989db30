"""A migrated template: how it is found, extended, built, kept and forgotten."""
