"""What analyze.py shows: statistics (pure functions on arrays), figures (functions that take an Axes), the page."""
