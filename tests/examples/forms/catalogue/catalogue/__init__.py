"""An application whose migrations import its models."""
