"""What the plugin learns from the suite it runs: signals, shared state, missing variables."""
