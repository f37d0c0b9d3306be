"""An image wherever it is, opened safely: files, bytes, data URLs and the web."""
