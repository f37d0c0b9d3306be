"""From what `--data` says to the samples of a run, kept in its folder so that a resumed run has the same."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.train.data.collator import ConversationCollator
from qwen_vqa.train.data.dataset import ConversationDataset
from qwen_vqa.train.data.mixing import Mix, Tally, mix_data_sets
from qwen_vqa.train.data.reading import read_data_set, source_key
from qwen_vqa.train.data.screening import Screen
from qwen_vqa.train.data.source import DataSource
from qwen_vqa.train.ranks import gathered, rank
from qwen_vqa.train.training_config import TrainingConfig

MIX_FILE, REPORT_FILE = "data_mix.npz", "data.json"


def prepare_data(
    sources: Sequence[DataSource], processor: QwenVqaProcessor, config: TrainingConfig, output: Path
) -> ConversationDataset:
    """Read, check and mix the data sets; what was drawn is written to `output` and taken from there the next time.

    The processes of a run share the work. The first of them reads and writes in `output`.

    Raises:
        UserError: something is missing or not in its format, too much is broken, or the data is not what this run
            began with.
    """
    data_sets = [read_data_set(source) for source in sources]
    key = [source_key(source) for source in sources]
    asked = {"key": key, "seed": config.seed, "max_samples": config.max_samples, "max_length": config.max_length}
    weights = [source.weight for source in sources]
    mix = _first_ranks(lambda: _load(output, asked | {"weights": weights}))
    if mix is None:
        images = processor.image_processor
        image_tokens = None if images.view_rule.fixed_views is not None else images.image_tokens
        screen = Screen(ConversationCollator(processor).token_count, config.max_length, image_tokens)
        mix = mix_data_sets(sources, data_sets, screen, config.max_samples, config.max_dropped, config.seed)
        if rank() == 0:
            _save(mix, output, asked | {"weights": weights}, sources)
    return ConversationDataset([source.name for source in sources], data_sets, mix)


def _first_ranks(act: Callable[[], Mix | None]) -> Mix | None:
    """What `act` gives in the first process, in all of them; and so what it raises."""
    found, error = None, None
    if rank() == 0:
        try:
            found = act()
        except UserError as raised:
            error = raised
    found, error = gathered((found, error))[0]
    if error is not None:
        raise error
    return found


def _load(output: Path, asked: dict) -> Mix | None:
    if not (output / REPORT_FILE).is_file():
        return None
    report = json.loads((output / REPORT_FILE).read_text(encoding="utf-8"))
    changed = [name for name, value in asked.items() if report["asked"][name] != value]
    if changed:
        what = "the data sets" if changed[0] == "key" else changed[0]
        raise UserError(
            f"the run in {output} began with other data: {what} changed since. Restore what it was, or start anew "
            "with another -o."
        )
    with np.load(output / MIX_FILE) as arrays:
        tallies = [Tally(**tally) for tally in report["tallies"]]
        return Mix(arrays["source"], arrays["row"], arrays["messages"], tallies)


def _save(mix: Mix, output: Path, asked: dict, sources: Sequence[DataSource]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    np.savez(output / MIX_FILE, source=mix.source, row=mix.row, messages=mix.messages)
    report = {
        "asked": asked,
        "sources": [asdict(source) for source in sources],
        "tallies": [asdict(tally) for tally in mix.tallies],
    }
    partial = output / f"{REPORT_FILE}.partial"  # the report appears last and whole: it says that the mix is there
    partial.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(output / REPORT_FILE)
