"""Steps that are programs: their arguments, surroundings and processes."""
