"""The two-stage recipe against the joint one, on a small example."""
