"""What a script writes: decorators, commands, Pipeline."""
