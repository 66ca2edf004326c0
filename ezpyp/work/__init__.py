"""Running steps: in this process, or in helpers."""
