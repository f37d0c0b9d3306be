"""The load generator: what is asked, when, by which client, and what came back."""
