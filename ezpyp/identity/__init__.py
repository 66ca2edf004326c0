"""What makes code, values and files the same tomorrow: bytes, sources, digests."""
