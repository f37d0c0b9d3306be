"""How the output layer lies in memory on a CPU where its numbers are the input embeddings' own (tied embeddings)."""

# In vLLM's --additional-config, for whom `vllm serve` is started with the plugin.
SETTING = "qwen_vqa_output_layer"
MIXED = (
    "mixed"  # packed, and few sequences at once are multiplied with the input embeddings, where those have fewer bits
)
PACKED = "packed"  # in an order of its own beside them, in which several answers are decoded faster
SHARED = "shared"  # not at all: it multiplies with them as they lie
OUTPUT_LAYERS = (MIXED, PACKED, SHARED)

# MIXED: so many answers are multiplied with the 16-bit table; with more, arithmetic counts, and the packed one's is
# better. A smaller table is read in less than what it takes to start its product.
FEW = 4
LEAST_TABLE_BYTES = 2**25
