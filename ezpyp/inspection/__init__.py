"""Answers about a folder or a script: what would run, and why."""
