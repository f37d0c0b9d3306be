"""`qwen-vqa quantize report A B`: what quantising A to B gained and lost.

qwen-vqa quantize report my-model my-model-int8 --data train.jsonl -o my-report
"""

import json
from pathlib import Path
from typing import Any

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.quantisation.quantize_flags import report_parser
from qwen_vqa.benchmarks.quantisation.report_inputs import checked, default_folder, questions, read_record, with_adapter
from qwen_vqa.benchmarks.quantisation.report_picture import draw_report
from qwen_vqa.benchmarks.quantisation.served_accuracy import prompts_of, served_accuracy, served_label
from qwen_vqa.benchmarks.quantisation.speed import Load, Side, measure, servable
from qwen_vqa.plugin.hub_checkpoint import checkpoint_name, local_checkpoint
from qwen_vqa.quantize.answer_quality import compare, layer_errors
from qwen_vqa.quantize.comparison_memory import comparison_device, comparison_dtype, free_gpu_memory
from qwen_vqa.quantize.quantised_checkpoint import DequantisedLayers, load_dequantised
from qwen_vqa.train.data.collator import Sample
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference

SIDES = ("original", "quantised")
WORST_LAYERS = 5
LAYER_SAMPLES = 32


def main(argv: list[str]) -> int:
    """`qwen-vqa quantize report`.

    Raises:
        UserError: a folder is no checkpoint, A is quantised or B is not, or there is nothing to measure on.
    """
    args = report_parser().parse_args(argv)
    args.original, args.quantised = (local_checkpoint(one).resolve() for one in (args.original, args.quantised))
    output = args.output or default_folder(args.quantised)
    scheme = checked(args, output)
    record = read_record(args.quantised)
    args.seed = record.get("seed", 0) if args.seed is None else args.seed
    groups = questions(args, record)
    names = {name: checkpoint_name(getattr(args, name)) for name in SIDES}
    report: dict[str, Any] = {**names, "scheme": scheme.name}
    report |= {"merged_adapter": record.get("merge_adapter")}
    report |= {"seed": args.seed, "environment": environment(["qwen-vqa", "quantize", "report", *argv])}
    report |= {"disk": disk(args.original, args.quantised)}
    with with_adapter(args.original, record.get("merge_adapter"), output) as original:
        sides = [Side(folder, args.dtype) for folder in (original, args.quantised)]
        if not args.no_speed:
            servable(sides)  # said before the long comparison
        if groups is not None:
            report |= quality(original, args.quantised, groups, args.device)
            free_gpu_memory()
        write(report, output)  # stands, whatever a server does
        if not args.no_speed:
            load = Load(tuple(args.users), args.tokens, args.rounds, args.seed)
            print(f"measuring speed: users {args.users}, {args.tokens} tokens each, {args.rounds} rounds", flush=True)
            report |= speed(sides, load, groups)
    print(f"\n{write(report, output)}\nwrote {output}/report.json, report.md, report.svg")
    return 0


def quality(
    original: Path, quantised: Path, groups: dict[str, list[Sample]], asked_device: str = "auto"
) -> dict[str, Any]:
    """Accuracy, KL divergence and layer errors, one model in memory at a time.

    Raises:
        UserError: there is no memory for a model.
    """
    device, processor = comparison_device(original, asked_device), load_processor(original)
    dtype = comparison_dtype(original, device)
    some = [sample for samples in groups.values() for sample in samples[: max(1, LAYER_SAMPLES // len(groups))]]
    errors = layer_errors(load_reference(original, dtype).to(device), DequantisedLayers(quantised), processor, some)
    result = compare(
        lambda: load_reference(original, dtype).to(device),
        lambda: load_dequantised(quantised, dtype).to(device),
        processor,
        groups,
    )
    compared = {"compared_in": str(dtype).removeprefix("torch."), "compared_on": device.type}
    return result | {"layer_errors": errors} | compared


def speed(sides: list[Side], load: Load, groups: dict[str, list[Sample]] | None) -> dict[str, Any]:
    """Speed, memory and load time of both servers, and how well they answer the held-out questions.

    Raises:
        UserError: a server does not start, or does not answer.
    """
    found = measure(sides, load, prompts_of(groups or {}))
    result: dict[str, Any] = {"speed": {name: one.summary() for name, one in zip(SIDES, found, strict=True)}}
    if groups:
        result["served"] = served_accuracy(*(one.replies for one in found))
    return result


def write(report: dict[str, Any], output: Path) -> str:
    """The report's files; returns the table."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = table(report)
    (output / "report.md").write_text(text, encoding="utf-8")
    (output / "report.svg").write_text(draw_report(report), encoding="utf-8")
    return text


def disk(original: Path, quantised: Path) -> dict[str, int]:
    """Bytes of weights in each folder, adapters left out."""
    return {
        name: sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        for name, folder in zip(SIDES, (original, quantised), strict=True)
    }


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    lines = [f"# {report['scheme']}: {report['quantised']} against {report['original']}", ""]
    lines += ["| | original | quantised | |", "|---|---|---|---|"]
    before, after = report["disk"]["original"], report["disk"]["quantised"]
    lines.append(f"| weights on disk | {_mib(before)} | {_mib(after)} | {100 * after / before:.0f}% |")
    if "speed" in report:
        lines += _speed_lines(report["speed"]["original"], report["speed"]["quantised"])
    if "served" in report:
        lines += _served_lines(report["served"])
    lines += [_accuracy_line(f"right to the letter, {name}", row) for name, row in report.get("accuracy", {}).items()]
    if "kl" in report:
        kl = report["kl"]
        lines.append(
            f"| KL divergence, nats ({kl['prompts']} prompts) | | mean {kl['mean']:.5f} | p99 {kl['p99']:.4f} |"
        )
        for layer, error in list(report["layer_errors"].items())[:WORST_LAYERS]:
            lines.append(f"| error of {layer} | | {100 * error:.2f}% | |")
    return "\n".join(lines) + "\n"


def _served_lines(served: dict[str, Any]) -> list[str]:
    lines = [_accuracy_line(f"{served_label(served)}, {name}", row) for name, row in served["accuracy"].items()]
    unanswered = {side: len(served["unanswered"][side]) for side in SIDES}
    if any(unanswered.values()):
        lines.append(f"| questions without an answer | {unanswered['original']} | {unanswered['quantised']} | |")
    return lines


def _accuracy_line(label: str, row: dict[str, Any]) -> str:
    return (
        f"| {label} (n {row['n']}) | {_share(row, 'original')} | {_share(row, 'quantised')} | "
        f"{row['change']:+.1f} points ({row['change_ci'][0]:+.1f} to {row['change_ci'][1]:+.1f}) |"
    )


def _speed_lines(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    lines = [
        *(
            f"| {when}, all processes | {_mib(before[key])} | {_mib(after[key])} | "
            f"{100 * after[key] / before[key]:.0f}% |"
            for key, when in (("ready_bytes", "memory when ready"), ("resident_bytes", "memory after the run"))
        ),
        f"| load, seconds | {before['load_seconds']:.0f} | {after['load_seconds']:.0f} | |",
        f"| float type of the servers | {before['dtype']} | {after['dtype']} | |",
        f"| servers measured | {'side by side' if before['side_by_side'] else 'one after the other'} | | |",
    ]
    for phase in ("decode", "prefill"):
        key = f"{phase}_tokens_per_second"
        for users, speed in before[key].items():
            other = after[key][users]
            lines.append(
                f"| {phase}, {users} user{'s' if users != '1' else ''}, tokens/s | {speed:.1f} | {other:.1f} | "
                f"{other / speed:.2f} times |"
            )
    return lines


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _share(row: dict[str, Any], side: str) -> str:
    low, high = row[f"{side}_ci"]
    return f"{row[side]:.1f}% ({low:.1f} to {high:.1f})"
