"""One row, in the process that this starts: its memory and its faults end with it. The result goes to a file."""

import argparse
import json
from pathlib import Path

from qwen_vqa.benchmarks.gpu_check.check_row import CheckRow, CheckSetting
from qwen_vqa.train.model.compute_device import chosen_device


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", help="its fields, as JSON")
    parser.add_argument("--device", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--result", required=True, type=Path)
    args = parser.parse_args()
    setting = CheckSetting(str(chosen_device(args.device)), args.tiny, args.folder)
    args.result.write_text(json.dumps(CheckRow(**json.loads(args.row)).run(setting).as_json()))


if __name__ == "__main__":
    main()
