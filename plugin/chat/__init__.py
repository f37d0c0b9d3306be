"""How a conversation becomes a prompt."""
