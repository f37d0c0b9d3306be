"""Routes that `qwen-vqa verify` looks through: what the served model computes in, how it decodes, and its features.

They stand only on a server started with `--verify`.
"""

import io
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response

from qwen_vqa.serving.vllm_server_api import EngineClient

FEATURES_PATH = "/verify/image_features"
SETTINGS_PATH = "/verify/settings"
MAX_VIEWS = 32


def attach_verify_routes(app: FastAPI, engine: EngineClient) -> None:
    """Add GET /verify/settings, and POST /verify/image_features: a .npy of pixels in, a .npy of features out."""

    @app.get(SETTINGS_PATH)
    async def settings() -> dict[str, Any]:
        """Float types of the model's parts, and the sampling parameters of a request that sets none."""
        return {
            "float_types": (await engine.collective_rpc("float_types"))[0],
            "decoding": engine.model_config.get_diff_sampling_param(),
        }

    @app.post(FEATURES_PATH)
    async def image_features(request: Request) -> Response:
        """float32 .npy [images, 3, size, size] to float32 .npy [images, tokens, text width]."""
        try:
            pixels = np.load(io.BytesIO(await request.body()), allow_pickle=False)
        except (ValueError, OSError) as error:
            raise HTTPException(400, f"the body is not a .npy array: {error}") from error
        size = engine.model_config.hf_config.vision_config.image_size
        if pixels.dtype != np.float32 or pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise HTTPException(
                400, f"expected float32 [images, 3, {size}, {size}]; got {pixels.dtype} {pixels.shape}."
            )
        if len(pixels) > MAX_VIEWS:
            raise HTTPException(400, f"{len(pixels)} views; at most {MAX_VIEWS} at a time.")
        features = await engine.collective_rpc("image_features", args=(pixels.tolist(),))
        body = io.BytesIO()
        np.save(body, np.asarray(features[0], np.float32))
        return Response(body.getvalue(), media_type="application/octet-stream")
