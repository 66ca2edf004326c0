"""Where results lie: what every store promises, and the stores."""
