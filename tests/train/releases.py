"""Small data sets in the exact formats of their releases, with pictures that can be told apart."""

import io
import json
from pathlib import Path

import datasets

from qwen_vqa.train.data.dataset import ConversationDataset
from qwen_vqa.train.data.preparation import prepare_data
from qwen_vqa.train.data.source import DataSource
from qwen_vqa.train.training_config import TrainingConfig
from tests.tiny import picture, tiny_processor


def conversation(number: int, image: str | None, *turns: str, marker: str = "<image>\n{}") -> dict:
    """An entry of LLaVA-Instruct: turns of human and gpt in turn."""
    texts = [marker.format(turns[0]) if image else turns[0], *turns[1:]]
    rounds = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
    return {"id": f"{number:012}", **({"image": image} if image else {}), "conversations": rounds}


def save_pictures(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        picture(seed).save(folder / name)
    return folder


def write_llava(folder: Path, entries: list[dict] | None = None) -> str:
    """llava_instruct_150k.json beside a COCO train2017 folder; returns what `--data` takes."""
    names = [f"{number:012}.jpg" for number in range(3)]
    save_pictures(folder / "train2017", *names)
    if entries is None:
        entries = [
            conversation(0, names[0], "What is it?", "A bus.", "Which colour?", "Red."),
            conversation(1, names[1], "Describe the image.", "Two cats on a sofa.", marker="{}\n<image>"),
            conversation(2, f"COCO_train2014_{names[2]}", "Who is there?", "A child."),
            conversation(3, None, "What is the capital of France?", "Paris."),
        ]
    (folder / "llava_instruct_150k.json").write_text(json.dumps(entries))
    return f"llava={folder}/llava_instruct_150k.json,images={folder}/train2017"


TEN = ["nokia"] * 4 + ["Nokia "] + ["samsung"] * 3 + ["toshiba", ""]


def textvqa_questions() -> list[dict]:
    """Entries of TextVQA_0.5.1_train.json, whose fields are these."""
    return [
        {
            "question": f"what is the brand of phone {number}?",
            "image_id": f"0054c91397f2fe0{number}",
            "image_classes": ["Belt", "Telephone"],
            "flickr_original_url": "https://farm6.staticflickr.com/2891/9134076951_f65b421097_o.jpg",
            "flickr_300k_url": "https://c4.staticflickr.com/3/2891/9134076951_9f0c2c2c3a_z.jpg",
            "image_width": 1024,
            "image_height": 730,
            "answers": TEN,
            "question_tokens": ["what", "is", "the", "brand", "of", "phone"],
            "question_id": number,
            "set_name": "train",
        }
        for number in range(3)
    ]


def write_textvqa(folder: Path) -> str:
    questions = textvqa_questions()
    save_pictures(folder / "train_images", *(f"{entry['image_id']}.jpg" for entry in questions))
    release = {"dataset_type": "train", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": questions}
    (folder / "TextVQA_0.5.1_train.json").write_text(json.dumps(release))
    return f"textvqa={folder}/TextVQA_0.5.1_train.json,images={folder}/train_images"


def write_textvqa_parquet(folder: Path) -> str:
    return f"textvqa={_write_parquet(folder, textvqa_questions())}"


def vizwiz_questions() -> list[dict]:
    """Entries of VizWiz' Annotations/train.json."""
    said = [["basil leaves"] * 6 + ["basil"] * 4, ["unanswerable"] * 4 + ["blue"] * 6, ["no"] * 10]
    kinds = [("other", 1), ("unanswerable", 0), ("yes/no", 1)]
    return [
        {
            "image": f"VizWiz_train_{number:08}.jpg",
            "question": "What is this?",
            "answers": [{"answer_confidence": "yes", "answer": answer} for answer in answers],
            "answer_type": kind,
            "answerable": answerable,
        }
        for number, (answers, (kind, answerable)) in enumerate(zip(said, kinds, strict=True))
    ]


def write_vizwiz(folder: Path) -> str:
    questions = vizwiz_questions()
    save_pictures(folder / "train", *(entry["image"] for entry in questions))
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "train.json").write_text(json.dumps(questions))
    return f"vizwiz={folder}/Annotations/train.json,images={folder}/train"


def write_vizwiz_parquet(folder: Path) -> str:
    rows = [
        {
            "question_id": entry["image"],
            "question": entry["question"],
            "answers": [answer["answer"] for answer in entry["answers"]],
            "category": entry["answer_type"],
        }
        for entry in vizwiz_questions()
    ]
    return f"vizwiz={_write_parquet(folder, rows)}"


def _write_parquet(folder: Path, rows: list[dict]) -> Path:
    """As the hub stores images: a struct of bytes and path, marked as an image in the schema."""
    (folder / "data").mkdir(parents=True)
    images = [{"bytes": jpeg(seed), "path": f"{seed}.jpg"} for seed in range(len(rows))]
    table = datasets.Dataset.from_list([{**row, "image": image} for row, image in zip(rows, images, strict=True)])
    table.cast_column("image", datasets.Image()).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "JPEG")
    return buffer.getvalue()


def prepare(output: Path, *data: str | Path, **config: object) -> ConversationDataset:
    """The samples of a run on the tiny model."""
    sources = [DataSource.parse(str(text)) for text in data]
    return prepare_data(sources, tiny_processor(), TrainingConfig(**config), output)
