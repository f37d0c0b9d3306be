"""A page of wrong answers for a person to look through: one HTML file, pictures inside, nothing fetched."""

import html
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

import numpy as np

from qwen_vqa.plugin.images.image_limits import ImageError
from qwen_vqa.plugin.images.image_source import open_image
from qwen_vqa.plugin.images.message_parts import data_url
from qwen_vqa.train.data.row import Picture
from qwen_vqa.train.evaluation.normalisation import normalise_answer
from qwen_vqa.train.evaluation.questions import OWN, Condition, Question
from qwen_vqa.train.evaluation.results import Results
from qwen_vqa.train.evaluation.scoring import Group, Mean, Scored

SHOWN = 500  # cards; more make a page that browsers open slowly
THUMBNAIL = (420, 320)  # pixels, at most
_COLUMNS = ("data set", "answer type", "n", "accuracy", "", "by", "exact", "ANLS")
_TEMPLATE = Path(__file__).with_name("page.html")
Blind = dict[tuple[str, str], list[tuple[Condition, str]]]


def write_page(results: Results, file: Path, seed: int = 0) -> None:
    """The means, and every answer with a score below 1; of more than SHOWN answers that many, drawn at random."""
    wrong = [one for one in results.scores if one.reply.prompt.condition == OWN and one.accuracy < 1]
    chosen = wrong
    if len(wrong) > SHOWN:
        places = np.random.default_rng(seed).choice(len(wrong), SHOWN, replace=False)
        chosen = [wrong[place] for place in np.sort(places)]
    groups = results.groups
    blind = list(dict.fromkeys(one.condition for one in groups if one.condition != OWN))
    said_blind = _blind_answers(results)
    questions = [one.reply.prompt.question for one in chosen]
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        model=_text(results.about.get("model", "")),
        date=_text(results.about.get("date", "")),
        warnings="\n".join(f'<p class="warning">{_text(warning)}</p>' for warning in _warnings(results)),
        accuracy=_text(results.rules.name),
        header="".join(f"<th>{_text(column)}</th>" for column in (*_COLUMNS, *blind)),
        rows="\n".join(_row(one, groups, blind) for one in groups if one.condition == OWN),
        shown=_text(f"{len(chosen)} of {len(wrong)} wrong answers are below." if len(chosen) < len(wrong) else ""),
        data_sets=_options(question.data_set for question in questions),
        answer_types=_options(question.answer_type for question in questions if question.answer_type),
        cards="\n".join(_card(one, said_blind) for one in chosen),
    )
    file.write_text(page, encoding="utf-8")


def _warnings(results: Results) -> list[str]:
    warnings = []
    if results.stopped:
        warnings.append(f"Stopped after {len(results.replies)} of {results.asked} prompts: {results.stopped}")
    if results.failed:
        first = results.failed[0]
        warnings.append(
            f"{len(results.failed)} prompts have no answer and are not scored. The first: "
            f"{first.prompt.question.data_set} {first.prompt.question.question_id}: {first.fault}"
        )
    return warnings


def _blind_answers(results: Results) -> Blind:
    said: Blind = {}
    for reply in results.replies:
        if not reply.fault and reply.prompt.condition != OWN:
            question = reply.prompt.question
            said.setdefault((question.data_set, question.question_id), []).append(
                (reply.prompt.condition, reply.answer)
            )
    return said


def _row(own: Group, groups: Sequence[Group], blind: Sequence[Condition]) -> str:
    means = {
        one.condition: one.accuracy
        for one in groups
        if (one.data_set, one.answer_type) == (own.data_set, own.answer_type)
    }
    mean = own.accuracy
    bar = ""
    if mean is not None:
        bar = f'<i style="width:{100 * mean.mean:.1f}%"></i>'
        bar += f'<i class="range" style="left:{100 * mean.low:.1f}%;width:{100 * (mean.high - mean.low):.1f}%"></i>'
        marks = [means[condition] for condition in blind if means.get(condition) is not None]
        bar += "".join(f'<i class="blind" style="left:{100 * mark.mean:.1f}%"></i>' for mark in marks if mark)
    accuracy = f"{_percent(mean)} <small>({mean.low:.0%} to {mean.high:.0%})</small>" if mean else "-"
    cells = [_text(own.data_set), _text(own.answer_type), f"{mean.count if mean else 0:,}", accuracy]
    cells += [f'<div class="track">{bar}</div>', _text(own.metric), _percent(own.exact_match), _percent(own.anls)]
    cells += [_percent(means.get(condition)) for condition in blind]
    # A phone has no room for a table: there each cell carries its column's name.
    named = zip((*_COLUMNS, *blind), cells, strict=True)
    return "<tr>" + "".join(f"<td data-column={_quoted(column)}>{cell}</td>" for column, cell in named) + "</tr>"


def _card(one: Scored, said_blind: Blind) -> str:
    question, answer = one.reply.prompt.question, one.reply.answer
    blind = said_blind.get((question.data_set, question.question_id), [])
    same = any(normalise_answer(said) == normalise_answer(answer) for _, said in blind)
    verdict = "partly" if one.accuracy > 0 else "wrong"
    attributes = {
        "data-data_set": question.data_set,
        "data-answer_type": question.answer_type,
        "data-score": verdict,
        "data-blind": "same" if same else "other",
    }
    said = "".join(f"<dt>{_text(condition)}</dt><dd>{_text(text)}</dd>" for condition, text in blind)
    scores = [f"exact {one.exact_match:.0f}", f"ANLS {one.anls:.2f}"]
    if one.vqa_accuracy is not None:
        scores.insert(0, f"accuracy {one.vqa_accuracy:.2f}")
    tags = [question.data_set, question.answer_type, question.question_id, *scores]
    return (
        f'<article class="{verdict}" {" ".join(f"{key}={_quoted(value)}" for key, value in attributes.items())}>'
        f'<div class="pictures">{_pictures(question.pictures)}</div>'
        f'<div class="text"><h2>{_text(question.text)}</h2><dl>'
        f'<dt>answer</dt><dd class="answer">{_text(answer) or "<small>(empty)</small>"}</dd>'
        f'<dt>target</dt><dd class="target">{_text(question.target)}</dd>'
        f"<dt>people</dt><dd>{_people(question)}</dd>{said}</dl></div>"
        f"<footer>{''.join(f'<span>{_text(tag)}</span>' for tag in tags if tag)}</footer></article>"
    )


def _people(question: Question) -> str:
    counts = Counter(question.answers).most_common()
    return ", ".join(
        (_text(text) or "<small>(empty)</small>") + (f" <small>&times;{count}</small>" if count > 1 else "")
        for text, count in counts
    )


def _pictures(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return "<span>no picture</span>"
    return "".join(_thumbnail(picture) for picture in pictures)


def _thumbnail(picture: Picture) -> str:
    try:
        image = open_image(picture.source)
    except ImageError as error:  # it was there when the question was asked
        return f"<span>{_text(str(error))}</span>"
    image.thumbnail(THUMBNAIL)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f'<img alt="" loading="lazy" decoding="async" src="{data_url(buffer.getvalue(), "image/jpeg")}">'


def _options(values: Iterable[str]) -> str:
    return "".join(f"<option value={_quoted(value)}>{_text(value)}</option>" for value in sorted(set(values)))


def _percent(mean: Mean | None) -> str:
    return f"{mean.mean:.1%}" if mean is not None else "-"


def _text(text: str) -> str:
    return html.escape(text)


def _quoted(text: str) -> str:
    return f'"{html.escape(text, quote=True)}"'
