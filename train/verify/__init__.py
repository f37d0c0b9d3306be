"""Is the served model the trained one? If not, what differs first."""
