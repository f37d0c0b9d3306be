"""Connectors, a file each: image features to embeddings of the language model's width."""
