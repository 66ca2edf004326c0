"""Slurm: jobs, their settings, and whether the cluster is as it should be."""
