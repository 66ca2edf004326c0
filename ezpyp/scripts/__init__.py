"""The user's script: loaded without being run, copied, imported by what it spawns."""
