"""The server's processes: how they start, answer for each other, and end."""
