"""Carry a plan out, from the first look at the folder to the summary."""
