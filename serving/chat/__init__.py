"""`qwen-vqa chat`: a page in the browser that talks to the server as any client does."""
