"""What a request costs in arithmetic, counted from the dimensions."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """A shape. An operation is a multiplication or an addition, so a weight costs two a token.

    Attention over the prompt (4 x tokens^2 x width a layer) is counted for the encoder and left out in the language
    model, where at these lengths it is below 2%; norms, activations and embeddings are left out.
    """

    encoder_tokens: int
    encoder_width: int
    encoder_layers: int
    encoder_intermediate: int
    connector: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    text_tokens: int

    @property
    def body_parameters(self) -> int:
        """Weights of the language model's layers."""
        kv = 2 * self.hidden * (self.hidden // self.heads) * self.kv_heads
        return self.layers * (2 * self.hidden**2 + kv + 3 * self.hidden * self.intermediate)

    @property
    def output_parameters(self) -> int:
        """Weights of the output layer."""
        return self.vocabulary * self.hidden

    @property
    def prompt_tokens(self) -> int:
        """Of a question about one image."""
        return self.encoder_tokens + self.text_tokens

    @property
    def encoder(self) -> int:
        """Operations for an image, with the connector."""
        width = self.encoder_width
        layer = 2 * (4 * width**2 + 2 * width * self.encoder_intermediate) + 4 * self.encoder_tokens * width
        connector = 2 * (width * self.connector + self.connector * self.hidden)
        return self.encoder_tokens * (self.encoder_layers * layer + connector)

    def layer_operations(self, prompt_tokens: float, output_tokens: int) -> float:
        """In the language model's layers. The prompt's last token gives the answer's first, so an answer of n tokens
        takes n - 1 steps of its own."""
        return 2 * self.body_parameters * (prompt_tokens + output_tokens - 1)

    def around_operations(self, output_tokens: int, image: bool = True) -> int:
        """In encoder, connector and output layer, which of a prompt meets the last token alone."""
        return (self.encoder if image else 0) + 2 * self.output_parameters * output_tokens


# Tokens of the load generator's prompts beside the image, as the servers counted them; Qwen's template adds a system
# message, which the demo's tokenizer spells in 49.
DEMO_TEXT, QWEN_TEXT = 23, 72
WORK = {
    "demo": Work(65, 192, 6, 768, 192, 192, 4, 6, 2, 512, 896, DEMO_TEXT),
    "0.5b": Work(145, 768, 12, 3072, 896, 896, 24, 14, 2, 4864, 151936, QWEN_TEXT),
    "3b": Work(145, 768, 12, 3072, 2048, 2048, 36, 16, 2, 11008, 151936, QWEN_TEXT),
}
