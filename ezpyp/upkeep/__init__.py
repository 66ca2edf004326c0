"""Look after folders: check, clean, pack, merge, convert, accept."""
