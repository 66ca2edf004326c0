"""This machine: files, memory, cores, launchers, the processes of a process. Nothing here knows of steps."""
