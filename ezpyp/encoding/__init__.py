"""Results to bytes and back."""
