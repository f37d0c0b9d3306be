"""How well a checkpoint or a server answers: asking, scoring, and showing what was wrong."""
