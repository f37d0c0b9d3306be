"""How the language model's linear layers lie in memory on a CPU where float32 is served from 16 bits."""

# In vLLM's --additional-config, for whom `vllm serve` is started with the plugin.
SETTING = "qwen_vqa_linear_layers"
MIXED = "mixed"  # packed, and in 16 bits beside it, for the products of few rows
PACKED = "packed"  # in float32 alone, in oneDNN's order
LINEAR_LAYERS = (MIXED, PACKED)
# Of 16 bits. A smaller matrix is read in less than what it takes to start its product.
LEAST_MATRIX_BYTES = 2**20
