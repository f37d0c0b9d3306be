"""Errors as the API that was asked writes them: OpenAI's shape, and Anthropic's."""
