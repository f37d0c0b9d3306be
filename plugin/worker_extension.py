"""A method beside vLLM's worker (`--worker-extension-cls`): the image features that the served model computes."""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as ModelRunnerV2
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as ModelRunnerV1


class ImageFeaturesExtension:
    """Mixed into the worker; `collective_rpc("image_features", ...)` reaches it."""

    model_runner: "ModelRunnerV1 | ModelRunnerV2"  # the worker's own

    def image_features(self, pixel_values: list) -> list:
        """Pixels [images, 3, size, size], nested lists, to connected features [images, tokens, text width].

        Nested lists, because they cross a process border that takes no tensors of unknown classes.
        """
        model: Any = self.model_runner.get_model()
        parameter = next(model.parameters())
        with torch.inference_mode():
            features = model.embed_multimodal(
                pixel_values=torch.tensor(pixel_values, dtype=parameter.dtype, device=parameter.device)
            )
        return torch.stack(list(features)).float().cpu().tolist()
