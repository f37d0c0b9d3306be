"""Drawn pictures and questions about them: what the demo learns, and small data sets of every format."""
