"""How an image becomes the pixels that the vision encoder sees."""
