"""What `serve` looks at and says before and when it starts."""
