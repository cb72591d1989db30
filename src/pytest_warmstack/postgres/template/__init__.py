"""A migrated template: find it, extend it, build it, keep it, forget it."""
