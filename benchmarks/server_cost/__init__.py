"""What the server costs beside the model: CPU time, start-up, the client."""
