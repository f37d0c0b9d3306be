"""All that the server takes from vLLM, in one place, with what differs between the releases.

`python -m tests.vllm_surface` compares it with the sources of each supported release. `serve` and `doctor` import this
module before anything else of the server: what is not there is said by both.
"""

from vllm import ModelRegistry, envs
from vllm.config import LoRAConfig, ModelConfig, VllmConfig
from vllm.config.logging import LoggingConfig
from vllm.config.lora import MaxLoRARanks
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.entrypoints.launchers.utils.ssl import SSLCertRefresher
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.models.api_router import models
from vllm.entrypoints.openai.models.protocol import LoRAModulePath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.scale_out.render.serving import ServingRender
from vllm.entrypoints.serve.engine.protocol import ErrorResponse, ModelCard
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.multimodal.media import MediaConnector, MediaWithBytes
from vllm.multimodal.media.connector import MEDIA_CONNECTOR_REGISTRY
from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins
from vllm.renderers import TokenizeParams
from vllm.tasks import SupportedTask
from vllm.tool_parsers.abstract_tool_parser import ToolParser, ToolParserManager
from vllm.transformers_utils.processor import cached_processor_from_config
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info
from vllm.utils.import_utils import import_pynvml
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.utils import (
    CoreEngineLaunch,
    EngineZmqListeners,
    bind_engine_zmq_listeners,
    launch_core_engines,
)
from vllm.v1.executor import Executor
from vllm.v1.utils import APIServerProcessManager
from vllm.version import __version_tuple__

SINCE_0_33 = __version_tuple__ >= (0, 33)

if SINCE_0_33:
    from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.common.startup import cli_env_setup
else:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
