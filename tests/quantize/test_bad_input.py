"""What cannot be done is said before any long work, with what to do instead."""

import json
import math
import os
import shutil
from argparse import Namespace
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import GPT2Config

from qwen_vqa.benchmarks.quantisation.quantize_command import main
from qwen_vqa.benchmarks.quantisation.report import main as report
from qwen_vqa.plugin import quantization
from qwen_vqa.plugin.cpu.kernel_support import int8_products_are_right, multiplies_4_bit_weights
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.quantization import BITSANDBYTES, FACTS, RECORD_FILE, scheme_of
from qwen_vqa.quantize.layers import select_layers, tensor_sizes
from qwen_vqa.quantize.options import CALIBRATION_OVERHEAD, Options, calibration_bytes, check_memory
from qwen_vqa.quantize.quantize import quantise
from qwen_vqa.serving.checked_checkpoint import checked_checkpoint
from qwen_vqa.serving.startup.quantised_check import adapter_note, check_quantised
from qwen_vqa.train.model.reference_checkpoint import load_processor, save_checkpoint
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration
from tests.quantize.anywhere import anywhere, eight_bits, skip_unless_served_here
from tests.tiny import DEMO, tiny_config, tiny_processor


def test_what_is_quantised_already(quantised: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is quantised already \(int8\).*16-bit checkpoint"):
        quantise(anywhere(quantised("int8"), tmp_path / "out", "nf4"))


def test_a_group_size_that_does_not_divide(with_adapter: Path, tmp_path: Path, questions: Path) -> None:
    with pytest.raises(
        UserError, match=r"--group-size 128 does not divide the 192 inputs.*choose --group-size 64 or 32"
    ):
        quantise(anywhere(with_adapter, tmp_path / "out", "int4", group_size=128, data=str(questions)))


def test_a_group_size_that_no_kernel_has(with_adapter: Path, tmp_path: Path, questions: Path) -> None:
    with pytest.raises(UserError, match="--group-size 48: it must be one of 32, 64, 128"):
        quantise(anywhere(with_adapter, tmp_path / "out", "int4", group_size=48, data=str(questions)))


def test_a_scheme_that_this_machine_cannot_serve(with_adapter: Path, tmp_path: Path) -> None:
    processors = {"int8": int8_products_are_right(), "int4": multiplies_4_bit_weights()}
    here = ", ".join([*(scheme for scheme, served in processors.items() if served), "nf4", "int8-bnb"])
    with pytest.raises(UserError, match=rf"fp8 needs .* 8\.9.*Here: {here}\. Pass --elsewhere"):
        quantise(Options(with_adapter, tmp_path / "out", "fp8"))


def test_serving_what_was_made_for_another_machine(quantised: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"cannot be served here: fp8 needs .* 8\.9"):
        checked_checkpoint(quantised("fp8"))


def serve_options(**changed: object) -> Namespace:
    return Namespace(
        **{"quantization": None, "dtype": "auto", "tensor_parallel_size": 1, "lora_modules": None} | changed
    )


@pytest.mark.parametrize("scheme", ["int4", "nf4"])
def test_four_bits_beside_float32(scheme: str, quantised: Callable[..., Path]) -> None:
    skip_unless_served_here(scheme)
    checkpoint = checked_checkpoint(quantised(scheme))
    with pytest.raises(UserError, match=f"{scheme} is served beside 16 bits here: pass --dtype bfloat16"):
        check_quantised(serve_options(dtype="float32"), checkpoint)
    assert check_quantised(serve_options(), checkpoint)


def test_in_flight_beside_float32(with_adapter: Path) -> None:
    with pytest.raises(UserError, match="nf4 is served beside 16 bits"):
        check_quantised(serve_options(quantization="bitsandbytes"), checked_checkpoint(with_adapter))


def test_bitsandbytes_split_between_gpus(quantised: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"nf4 checkpoints are not split.*--quantization bitsandbytes"):
        check_quantised(serve_options(tensor_parallel_size=2), checked_checkpoint(quantised("nf4")))


def test_serve_says_what_adapters_lose(quantised: Callable[..., Path]) -> None:
    checkpoint = checked_checkpoint(quantised(eight_bits()))
    stranger = Namespace(name="other", path="somewhere")
    notes = check_quantised(serve_options(lora_modules=[stranger]), checkpoint)
    other, own = notes[-2:]
    assert other.startswith(f"adapter other was not measured on this {eight_bits()} base")
    # It answers nothing right on the original base: that the quantised one loses nothing of it says nothing.
    assert own.startswith(f"adapter tiny-lora was not measured on this {eight_bits()} base")


def test_serve_says_what_was_measured(quantised: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(quantised("int8"), tmp_path / "int8")
    record = json.loads((folder / RECORD_FILE).read_text())
    record["adapters"]["tiny-lora"]["accuracy"] = {"quantised": 80.0, "change": -1.5, "n": 200}
    (folder / RECORD_FILE).write_text(json.dumps(record))
    own = folder / "adapters" / "tiny-lora"
    measured = adapter_note(folder, FACTS["int8"], "tiny-lora", own)
    assert measured == "adapter tiny-lora on this int8 base: 80.0% right, -1.5 points from the original base (n 200)"
    assert "was not measured" in adapter_note(folder, FACTS["int8"], "tiny-lora", tmp_path / "another" / "tiny-lora")


def test_int8_takes_16_bits_alone_on_cuda(
    with_adapter: Path, quantised: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not looked at by checked_checkpoint, which would refuse it where the processor cannot multiply it.
    checkpoint = replace(checked_checkpoint(with_adapter), folder=quantised("int8"), scheme=FACTS["int8"])
    check_quantised(serve_options(dtype="float32"), checkpoint)
    monkeypatch.setattr(quantization, "_cuda_capability", lambda: (9, 0))
    with pytest.raises(UserError, match="int8 is served beside 16 bits here: pass --dtype bfloat16"):
        check_quantised(serve_options(dtype="float32"), checkpoint)
    assert check_quantised(serve_options(dtype="bfloat16"), checkpoint)


def test_fewer_samples_than_asked_for(with_adapter: Path, tmp_path: Path, questions: Path) -> None:
    with pytest.raises(UserError, match=r"--samples 13: .*questions has only 12"):
        quantise(anywhere(with_adapter, tmp_path / "out", "int4", group_size=64, samples=13, data=str(questions)))


def test_calibration_without_data(with_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--scheme int4 is calibrated on your own data: pass --data"):
        quantise(anywhere(with_adapter, tmp_path / "out", "int4", group_size=64))


def data_with(answer: str, questions: Path, tmp_path: Path) -> str:
    """The questions, and another of which the answer is this."""
    lines = [json.loads(line) for line in questions.read_text().splitlines()]
    lines[7]["messages"][1]["content"] = answer
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for picture in questions.parent.glob("*.png"):
        shutil.copy(picture, tmp_path)
    return str(tmp_path / "data.jsonl")


@pytest.fixture
def joins_line_breaks(with_adapter: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint with a token for two line breaks, as Qwen2.5's vocabulary has it."""
    folder = shutil.copytree(with_adapter, tmp_path / "joins")
    processor = load_processor(folder)
    processor.tokenizer.add_tokens(["\n\n"])
    processor.save_pretrained(folder)
    return folder


ANSWERS = [("red " * 3000, r"sample 7 has \d+ tokens, more than 2048"), ("\nred", "may not begin with a line break")]


@pytest.mark.parametrize(("answer", "message"), ANSWERS)
@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_samples_that_do_not_fit(
    scheme: str, answer: str, message: str, joins_line_breaks: Path, questions: Path, tmp_path: Path, no_loading: None
) -> None:
    """Whether they calibrate or measure adapters."""
    data = data_with(answer, questions, tmp_path)
    with pytest.raises(UserError, match=message):
        quantise(anywhere(joins_line_breaks, tmp_path / "out", scheme, samples=12, data=data))


@pytest.mark.parametrize(("answer", "message"), ANSWERS)
def test_a_report_on_samples_that_do_not_fit(
    answer: str,
    message: str,
    joins_line_breaks: Path,
    quantised: Callable[..., Path],
    questions: Path,
    tmp_path: Path,
    no_loading: None,
) -> None:
    arguments = ["--no-speed", "--data", data_with(answer, questions, tmp_path), "-o", str(tmp_path / "out")]
    with pytest.raises(UserError, match=message):
        report([str(joins_line_breaks), str(quantised("int8")), *arguments])


@pytest.fixture
def no_loading(quantised: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when weights are loaded, with which the long work begins."""
    for scheme in ("int8", "int4", "nf4", "int8-bnb", "fp8"):
        quantised(scheme)

    def loaded(*args: object) -> None:
        raise AssertionError("weights were loaded")

    for module in ("quantize.quantize", "benchmarks.quantisation.report", "quantize.adapters"):
        monkeypatch.setattr(f"qwen_vqa.{module}.load_reference", loaded)


def test_a_language_model_that_cannot_be_calibrated(questions: Path, tmp_path: Path, no_loading: None) -> None:
    processor = tiny_processor()
    config = tiny_config(processor)
    ids = {"bos_token_id": None, "eos_token_id": config.text_config.eos_token_id}
    config.text_config = GPT2Config(
        n_embd=128, n_layer=2, n_head=4, vocab_size=config.text_config.vocab_size, tie_word_embeddings=True, **ids
    )
    save_checkpoint(tmp_path / "gpt2", QwenVqaForConditionalGeneration(config), processor)
    with pytest.raises(UserError, match=r"a gpt2 language model cannot be calibrated.*Take --scheme int8"):
        quantise(anywhere(tmp_path / "gpt2", tmp_path / "out", "int4", samples=4, data=str(questions)))


@pytest.mark.parametrize("bound", [-1.0, math.nan])
def test_an_adapter_bound_that_cannot_be(bound: float, with_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--adapter-bound .*must be 0 points or more"):
        quantise(anywhere(with_adapter, tmp_path / "out", "int8", adapter_bound=bound))


def test_a_report_of_what_is_not_served_here(
    with_adapter: Path, quantised: Callable[..., Path], tmp_path: Path, no_loading: None
) -> None:
    message = r"speed is measured behind a server, and fp8 needs .* 8\.9.*--no-speed"
    with pytest.raises(UserError, match=message):
        report([str(with_adapter), str(quantised("fp8"))])
    with pytest.raises(UserError, match=message):
        main([str(with_adapter), "--scheme", "fp8", "--elsewhere", "--report", "-o", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scheme", ["int4", "nf4"])
def test_a_report_in_float32_of_4_bits(
    scheme: str, with_adapter: Path, quantised: Callable[..., Path], no_loading: None
) -> None:
    skip_unless_served_here(scheme)
    with pytest.raises(UserError, match=f"--dtype float32: {scheme} is served beside 16 bits here"):
        report([str(with_adapter), str(quantised(scheme)), "--dtype", "float32"])


def test_a_report_on_different_models(quantised: Callable[..., Path], no_loading: None) -> None:
    with pytest.raises(UserError, match=r"was not made of .*text_config.hidden_size is 128 in it, and 192 there"):
        report([str(DEMO), str(quantised("int8")), "--no-speed"])


def test_an_output_that_cannot_be_written(
    with_adapter: Path, quantised: Callable[..., Path], tmp_path: Path, no_loading: None
) -> None:
    (tmp_path / "file").touch()
    message = f"-o .*: {tmp_path}/file is a file"
    with pytest.raises(UserError, match=message):
        quantise(anywhere(with_adapter, tmp_path / "file" / "out", "int8"))
    for place in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UserError, match=message):
            report([str(with_adapter), str(quantised(eight_bits())), "-o", str(place)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_without_the_right_to_write(with_adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written to"):
        quantise(anywhere(with_adapter, tmp_path / "locked" / "out", "int8"))


def test_the_memory_of_calibration_grows_with_the_longest_sample(
    with_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = anywhere(with_adapter, tmp_path / "out", "int4", samples=100)
    selection = select_layers(with_adapter)
    (short, beside), (long, more_beside) = (calibration_bytes(options, selection, length) for length in (512, 2048))
    assert short == 3 * 100 * 512 * 128 * 4  # three times, [samples, tokens, width], float32
    assert (long, more_beside > beside) == (4 * short, True)
    # The layers as they are stored, and as they are rounded: 4 bits a number, and more for the scales.
    numbers = sum(rows * width for rows, width in selection.shapes.values())
    assert beside > CALIBRATION_OVERHEAD + sum(tensor_sizes(with_adapter).values()) + numbers / 2
    memory = namedtuple("memory", "available")
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory(long + beside))
    check_memory(options, selection, 512)
    with pytest.raises(UserError, match=r"100 samples of up to 2048 tokens.*Lower --samples"):
        check_memory(options, selection, 2048)


def test_not_enough_disk(with_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(UserError, match=r"not enough disk: the checkpoint needs .* GiB"):
        quantise(anywhere(with_adapter, tmp_path / "out", "int8"))
    assert not (tmp_path / "out").exists()


def test_an_output_that_holds_something(with_adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        quantise(anywhere(with_adapter, tmp_path, "int8"))


def test_merging_an_adapter_that_is_not_there(with_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--merge-adapter other: .*adapters has tiny-lora"):
        quantise(anywhere(with_adapter, tmp_path / "out", "int8", merge_adapter="other"))


def test_a_report_in_the_wrong_order(with_adapter: Path, quantised: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="is quantised already"):
        report([str(quantised("int8")), str(with_adapter)])
    with pytest.raises(UserError, match="is not quantised; the order is"):
        report([str(with_adapter), str(with_adapter)])


@pytest.mark.parametrize("scheme", FACTS)
def test_the_help_says_what_serves_each_scheme(scheme: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"  {scheme} ")]
    assert FACTS[scheme].served_by in line
    assert ("one GPU" in line) == (FACTS[scheme].method == BITSANDBYTES)


def test_a_quantisation_from_elsewhere_is_named() -> None:
    with pytest.raises(UserError, match="method 'gptq' that is none of int8, int4, nf4, int8-bnb, fp8"):
        scheme_of({"quant_method": "gptq", "bits": 4})
