"""What the machine could do at best, and what a model's shape makes of it."""
