"""`qwen-vqa ask`: a question about pictures, answered in the terminal."""
