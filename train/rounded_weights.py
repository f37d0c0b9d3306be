"""The language model in 8 or 4 bits through bitsandbytes; the rest of the model stays as it is."""

from importlib.util import find_spec

from transformers import BitsAndBytesConfig

from qwen_vqa.plugin.errors import UserError

# The encoder and the connector are small, and errors there reach every token; the output layer is tied in Qwen2.5-3B.
KEPT_WHOLE = ["vision_encoder", "connector", "lm_head"]


def bitsandbytes_config(load_in: str) -> BitsAndBytesConfig | None:
    """What `from_pretrained` takes for "8bit" (LLM.int8, arXiv:2208.07339) and "4bit" (NF4 with double quantisation,
    arXiv:2305.14314); None for "full".

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if load_in != "full" and find_spec("bitsandbytes") is None:
        raise UserError(f"--load-in {load_in} needs bitsandbytes: pip install 'qwen-vqa[qlora]'.")
    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=KEPT_WHOLE)
    if load_in == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype="bfloat16",
            llm_int8_skip_modules=KEPT_WHOLE,
        )
    return None
