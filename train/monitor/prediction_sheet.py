"""A sheet of sample predictions: picture, question, target and answer, green where right and red where wrong."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont, ImageOps

from qwen_vqa.plugin.images.image_limits import ImageError
from qwen_vqa.plugin.images.image_source import open_image
from qwen_vqa.train.evaluation.replies import Reply
from qwen_vqa.train.evaluation.scoring import Scored

COLUMNS, ROWS = 4, 3
_WIDTH, _PICTURE, _LINE, _LINES, _MARGIN = 300, 220, 19, 6, 10
_INK, _SOFT, _GREEN, _RED, _AMBER = (27, 31, 36), (98, 107, 118), (26, 127, 75), (194, 56, 46), (179, 107, 0)


def draw_sheet(replies: Sequence[Reply], file: Path) -> None:
    """Write a PNG of COLUMNS x ROWS replies, evenly from all: the same questions at each evaluation of a run."""
    count = min(COLUMNS * ROWS, len(replies))
    shown = [replies[place * len(replies) // count] for place in range(count)]
    height = _PICTURE + _LINES * _LINE + 2 * _MARGIN
    sheet = Image.new("RGB", (COLUMNS * _WIDTH, -(-count // COLUMNS) * height), "white")
    for place, reply in enumerate(shown):
        corner = (place % COLUMNS * _WIDTH, place // COLUMNS * height)
        sheet.paste(_tile(reply, (_WIDTH, height)), corner)
    sheet.save(file, optimize=True)


def _tile(reply: Reply, size: tuple[int, int]) -> Image.Image:
    tile = Image.new("RGB", size, "white")
    try:
        pictures = [open_image(picture.source) for picture in reply.prompt.pictures[:1]]
    except ImageError:  # said in red below
        pictures = []
    for picture in pictures:
        shown = ImageOps.contain(picture, (_WIDTH - 2 * _MARGIN, _PICTURE))
        tile.paste(shown, ((_WIDTH - shown.width) // 2, _MARGIN + (_PICTURE - shown.height) // 2))
    draw = ImageDraw.Draw(tile)
    y = _PICTURE + 2 * _MARGIN
    for text, colour in _lines(reply)[:_LINES]:
        draw.text((_MARGIN, y), text, fill=colour, font=_font())
        y += _LINE
    return tile


def _lines(reply: Reply) -> list[tuple[str, tuple[int, int, int]]]:
    question = reply.prompt.question
    if reply.fault:
        answer, colour = f"no answer: {reply.fault}", _RED
    else:
        score = Scored.of(reply).accuracy
        answer = f"answer: {reply.answer} ({score:.1f})"
        colour = _GREEN if score == 1 else _AMBER if score else _RED
    texts = ((question.text, _INK, 3), (f"target: {question.target}", _SOFT, 1), (answer, colour, 2))
    return [
        (line, shade)
        for text, shade, most in texts
        for line in textwrap.wrap(text, width=36, max_lines=most, placeholder=" ...") or [""]
    ]


def _font() -> ImageFont.FreeTypeFont:
    # matplotlib brings it along, and it has most scripts' letters.
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 14)
