"""Train the bundled demo model from nothing: pictures, questions, tokenizer, encoder, language model."""
