"""`qwen-vqa quantize` and `qwen-vqa quantize report`: the quantiser, and the report that measures what it made."""

from qwen_vqa.benchmarks.quantisation import report
from qwen_vqa.benchmarks.quantisation.report_inputs import check_speed, default_folder
from qwen_vqa.plugin.quantization import FACTS
from qwen_vqa.quantize.options import Options, check_writable
from qwen_vqa.quantize.quantize import parser, quantise
from qwen_vqa.quantize.sample_sources import demo_checkpoint


def main(argv: list[str]) -> int:
    """Quantise, or measure; with --report both.

    Raises:
        UserError: the job cannot be done, said before any long work.
    """
    if argv[:1] == ["report"]:
        return report.main(argv[1:])
    args = vars(parser().parse_args(argv))
    wants_report = args.pop("report")
    options = Options(**{**args, "source": args["source"] or demo_checkpoint()})
    if not wants_report:
        quantise(options)
        return 0
    check_speed(FACTS[options.scheme])
    check_writable(default_folder(options.output))
    quantise(options)
    data = ["--data", options.data] if options.data else []
    return report.main([str(options.source), str(options.output), "--device", options.device, *data])
