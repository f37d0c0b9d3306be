"""The model as Transformers and vLLM know it."""


def register() -> None:
    """vLLM's entry point `vllm.general_plugins`: teach Transformers and vLLM the model."""
    from qwen_vqa.plugin.library_warnings import quiet_libraries
    from qwen_vqa.plugin.registration import register_all

    quiet_libraries()
    register_all()
