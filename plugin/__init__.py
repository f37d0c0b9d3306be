"""The model as Transformers and vLLM know it."""


def register() -> None:
    """vLLM's entry point `vllm.general_plugins`: teach Transformers and vLLM the model."""
    from qwen_vqa.plugin.command.library_warnings import quiet_libraries
    from qwen_vqa.plugin.registration import register_all
    from qwen_vqa.plugin.vllm_model.shared_memory_names import name_shared_memory

    quiet_libraries()
    name_shared_memory()
    register_all()
