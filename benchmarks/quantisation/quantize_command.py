"""The command line of `qwen-vqa quantize` and of `qwen-vqa quantize report`."""

from qwen_vqa.benchmarks.quantisation.quantize_flags import parser, report_parser
from qwen_vqa.plugin.command.output_folder import check_writable
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.hub_checkpoint import local_checkpoint
from qwen_vqa.plugin.quantization import FACTS


def main(argv: list[str]) -> int:
    """`qwen-vqa quantize`, and `qwen-vqa quantize report`. PyTorch is imported when the flags have been read.

    Raises:
        UserError: the job cannot be done, said before any long work.
    """
    if argv[:1] == ["report"]:
        report_parser().parse_args(argv[1:])
        from qwen_vqa.benchmarks.quantisation.report import main as report

        return report(argv[1:])
    args = vars(parser().parse_args(argv))
    revision = args.pop("revision")
    if args["source"]:
        args["source"] = local_checkpoint(args["source"], revision)
    elif revision is not None:
        raise UserError(f"--revision {revision} is of a hub id, and without CHECKPOINT it is the bundled demo.")
    from qwen_vqa.quantize.options import Options
    from qwen_vqa.quantize.quantize import quantise
    from qwen_vqa.quantize.sample_sources import demo_checkpoint

    wants_report = args.pop("report")
    options = Options(**{**args, "source": args["source"] or demo_checkpoint()})
    if not wants_report:
        quantise(options)
        return 0
    from qwen_vqa.benchmarks.quantisation.report import main as report
    from qwen_vqa.benchmarks.quantisation.report_inputs import check_speed, default_folder

    check_speed(FACTS[options.scheme])
    check_writable(default_folder(options.output))
    quantise(options)
    data = ["--data", options.data] if options.data else []
    return report([str(options.source), str(options.output), "--device", options.device, *data])
