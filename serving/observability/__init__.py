"""What the server says of itself: log lines, request records, metrics."""
