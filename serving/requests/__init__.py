"""What is asked: content, images, tokens."""
