"""The cache folder around its results: whose it is, its plan, its history, what in it is still good."""
