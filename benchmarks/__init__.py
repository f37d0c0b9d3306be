"""The load generator, what it is checked against, and what the server is compared with."""
