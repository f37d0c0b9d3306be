"""Methods beside vLLM's worker (`--worker-extension-cls`), for `qwen-vqa verify`: what the served model computes."""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as ModelRunnerV2
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as ModelRunnerV1


class VerifyExtension:
    """Mixed into the worker; `collective_rpc` reaches its methods by their names."""

    model_runner: "ModelRunnerV1 | ModelRunnerV2"  # the worker's own

    def float_types(self) -> dict[str, str]:
        """The float type that each part of the model has in memory, by the part's name.

        Of a part whose weights are quantised, it is what the others have, such as its norms.
        """
        model = self._served_model()
        parts = ("language_model", "vision_encoder", "connector")
        return {part: str(_float_type(getattr(model, part))).removeprefix("torch.") for part in parts}

    def image_features(self, pixel_values: list) -> list:
        """Pixels [views, 3, size, size], nested lists, to connected features [views, tokens, text width].

        Nested lists, because they cross a process border that takes no tensors of unknown classes.
        """
        model = self._served_model()
        parameter = next(model.vision_encoder.parameters())
        with torch.inference_mode():
            pixels = torch.tensor(pixel_values, dtype=parameter.dtype, device=parameter.device)
            features = model.connector(model.config.joined_features(model.vision_encoder(pixels)))
        return features.to(model.embedding_dtype).float().cpu().tolist()

    def _served_model(self) -> Any:
        return self.model_runner.get_model()


def _float_type(part: torch.nn.Module) -> torch.dtype:
    # The last one: where a table of embeddings is held as it is stored, it comes first.
    return [parameter.dtype for parameter in part.parameters() if parameter.is_floating_point()][-1]
