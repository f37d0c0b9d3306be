"""Attacks on a real server, and what they cost the others: `python -m tests.attack`."""
