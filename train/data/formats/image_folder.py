"""A release's file name to a file in the folder that somebody really has."""

import re
from itertools import chain
from pathlib import Path

from qwen_vqa.train.data.row import Picture
from qwen_vqa.train.data.source import IMAGE_SUFFIXES

# COCO's 2014 releases name their files so; the same pictures are in the 2017 releases without it.
_COCO_2014 = re.compile(r"^COCO_(train|val)2014_")


def find_picture(folder: str | Path, name: str) -> Picture:
    """The file that an entry calls `name`; when there is none, the path where it should be.

    COCO's pictures are found with the 2014 prefix and without, and a name with folders (`coco/train2017/1.jpg`)
    also when `folder` is the last of them; last of all, with another picture's suffix: OCR-VQA's annotations say .jpg,
    and its script saves some as .gif.
    """
    folder = Path(folder)
    bare = _COCO_2014.sub("", Path(name).name)
    candidates = [name, Path(name).name, bare, f"COCO_train2014_{bare}", f"COCO_val2014_{bare}"]
    suffixes = sorted(IMAGE_SUFFIXES)
    paths = [folder / candidate for candidate in dict.fromkeys(candidates)]
    others = (path.with_suffix(suffix) for path in paths if path.suffix for suffix in suffixes)
    return Picture(str(next((path for path in chain(paths, others) if path.is_file()), folder / name)))
