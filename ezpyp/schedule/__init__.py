"""What may start next, where, and how much of it at once. Pure decisions, without input or output."""
