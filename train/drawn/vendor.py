"""Makes train/drawn/assets from npm packages. Needed only to change the drawings; retraining reads the PNGs.

npm pack emoji-datasource-google emoji-datasource-twitter @lobehub/fluent-emoji-flat @fontsource/roboto ...
pip install cairosvg
python -m qwen_vqa.train.drawn.vendor FOLDER_WITH_THE_TGZ_FILES
"""

import argparse
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qwen_vqa.train.drawn import words
from qwen_vqa.train.drawn.sprites import ASSETS, EMOJI_SIZE, GLYPH_BASELINE, GLYPH_HEIGHT, GLYPH_WIDTH

EMOJI_DESIGNS = {  # design -> package, file in it
    "noto": ("emoji-datasource-google", "package/img/google/64/{code}.png"),
    "twemoji": ("emoji-datasource-twitter", "package/img/twitter/64/{code}.png"),
    "fluent": ("lobehub-fluent-emoji-flat", "package/assets/{code}.svg"),
}
LICENCES = ("OFL-1.1", "Apache-2.0")
DIGIT_INK_HEIGHT = 66  # pixels of an 8


def vendor_emoji(folder: Path) -> None:
    """One row a design, one column a name, RGBA."""
    sheet = Image.new("RGBA", (EMOJI_SIZE * len(words.EMOJI), EMOJI_SIZE * len(EMOJI_DESIGNS)))
    for row, (package, pattern) in enumerate(EMOJI_DESIGNS.values()):
        with tarfile.open(next(folder.glob(f"{package}-[0-9]*.tgz"))) as archive:
            for column, code in enumerate(words.EMOJI.values()):
                data = member(archive, pattern.format(code=code))
                sheet.paste(load_image(data, pattern), (column * EMOJI_SIZE, row * EMOJI_SIZE))
    sheet.save(ASSETS / "emoji.png", optimize=True)


def member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()


def load_image(data: bytes, name: str) -> Image.Image:
    if name.endswith(".svg"):
        import cairosvg

        data = cairosvg.svg2png(data, output_width=EMOJI_SIZE, output_height=EMOJI_SIZE)
    return Image.open(io.BytesIO(data)).convert("RGBA")


def vendor_digits(folder: Path) -> None:
    """One row a face, ten columns, 8-bit coverage; digits.json has each face's name, licence and advances."""
    rows, faces = [], []
    for path in sorted(folder.glob("fontsource-*.tgz")):
        with tarfile.open(path) as archive:
            licence = json.loads(member(archive, "package/package.json"))["license"]
            family = path.name.removeprefix("fontsource-").rsplit("-", 1)[0]
            if licence not in LICENCES:
                print(f"left out {family}: {licence}")
                continue
            for weight in (400, 700):
                try:
                    file = member(archive, f"package/files/{family}-latin-{weight}-normal.woff")
                except KeyError:
                    continue
                row, advances = draw_digits(file)
                rows.append(row)
                faces.append({"family": family, "weight": weight, "licence": licence, "advances": advances})
    Image.fromarray(np.concatenate(rows)).save(ASSETS / "digits.png", optimize=True)
    lines = ",\n".join(json.dumps(face) for face in faces)
    (ASSETS / "digits.json").write_text(f"[\n{lines}\n]\n")
    print(f"{len(faces)} faces")


def draw_digits(font_file: bytes) -> tuple[np.ndarray, list[int]]:
    probe = ImageFont.truetype(io.BytesIO(font_file), 100)
    left, top, right, bottom = probe.getbbox("8")
    font = ImageFont.truetype(io.BytesIO(font_file), round(100 * DIGIT_INK_HEIGHT / (bottom - top)))
    row = Image.new("L", (GLYPH_WIDTH * 10, GLYPH_HEIGHT))
    advances = []
    for digit in range(10):
        tile = Image.new("L", (GLYPH_WIDTH, GLYPH_HEIGHT))
        left, _, right, _ = font.getbbox(str(digit), anchor="ls")
        ImageDraw.Draw(tile).text(((GLYPH_WIDTH - right - left) / 2, GLYPH_BASELINE), str(digit), 255, font, "ls")
        row.paste(tile, (digit * GLYPH_WIDTH, 0))
        advances.append(round(max(font.getlength(str(digit)), right - left + 4)))
    return np.asarray(row), advances


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where `npm pack` left the .tgz files")
    folder = parser.parse_args(argv).folder
    ASSETS.mkdir(exist_ok=True)
    vendor_emoji(folder)
    vendor_digits(folder)


if __name__ == "__main__":
    main()
