"""A method beside vLLM's worker (`--worker-extension-cls`): the image features that the served model computes."""

import torch


class ImageFeaturesExtension:
    """Mixed into the worker; `collective_rpc("image_features", ...)` reaches it."""

    def image_features(self, pixel_values: list) -> list:
        """Pixels [images, 3, size, size], nested lists, to connected features [images, tokens, text width].

        Nested lists, because they cross a process border that takes no tensors of unknown classes.
        """
        model = self.model_runner.get_model()  # type: ignore[attr-defined] # the worker's own
        parameter = next(model.parameters())
        with torch.inference_mode():
            features = model.embed_multimodal(
                pixel_values=torch.tensor(pixel_values, dtype=parameter.dtype, device=parameter.device)
            )
        return torch.stack(list(features)).float().cpu().tolist()
