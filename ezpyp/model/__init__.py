"""What a step is, what a plan is, and what their identity is made of. Values; nothing is run."""
