"""What cannot be done is said before any long work, with what to do instead."""

from argparse import Namespace
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.quantization import FACTS, scheme_of
from qwen_vqa.quantize.options import Options
from qwen_vqa.quantize.report import main as report
from qwen_vqa.quantize.run import main, quantise
from qwen_vqa.serving.checks import checked_checkpoint
from qwen_vqa.serving.quantised import check_quantised


def test_what_is_quantised_already(quantised: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is quantised already \(int8\).*16-bit checkpoint"):
        quantise(Options(quantised("int8"), tmp_path / "out", "nf4"))


def test_a_group_size_that_does_not_divide(with_adapter: Path, tmp_path: Path, questions: Path) -> None:
    with pytest.raises(
        UserError, match=r"--group-size 128 does not divide the 192 inputs.*choose --group-size 64 or 32"
    ):
        quantise(Options(with_adapter, tmp_path / "out", "int4", data=str(questions)))


def test_a_group_size_that_no_kernel_has(with_adapter: Path, tmp_path: Path, questions: Path) -> None:
    with pytest.raises(UserError, match="--group-size 48: it must be one of 32, 64, 128"):
        quantise(Options(with_adapter, tmp_path / "out", "int4", group_size=48, data=str(questions)))


def test_a_scheme_that_this_machine_cannot_serve(with_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fp8 needs .* 8\.9.*Here: int8, int4, nf4, int8-bnb.*--elsewhere"):
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
    checkpoint = checked_checkpoint(quantised(scheme))
    with pytest.raises(UserError, match=f"{scheme} is served beside 16 bits: pass --dtype bfloat16"):
        check_quantised(serve_options(dtype="float32"), checkpoint)
    assert check_quantised(serve_options(), checkpoint)


def test_in_flight_beside_float32(with_adapter: Path) -> None:
    with pytest.raises(UserError, match="nf4 is served beside 16 bits"):
        check_quantised(serve_options(quantization="bitsandbytes"), checked_checkpoint(with_adapter))


def test_bitsandbytes_split_between_gpus(quantised: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"nf4 checkpoints are not split.*--quantization bitsandbytes"):
        check_quantised(serve_options(tensor_parallel_size=2), checked_checkpoint(quantised("nf4")))


def test_serve_says_what_adapters_lose(quantised: Callable[..., Path]) -> None:
    checkpoint = checked_checkpoint(quantised("int8"))
    stranger = Namespace(name="other", path="somewhere")
    notes = check_quantised(serve_options(lora_modules=[stranger]), checkpoint)
    assert notes[0].startswith("adapter other was not measured on this int8 base")
    assert notes[1].startswith("adapter tiny-lora on this int8 base: 0.0% right, +0.0 points")


def test_fewer_samples_than_asked_for(with_adapter: Path, tmp_path: Path, questions: Path) -> None:
    with pytest.raises(UserError, match=r"--samples 13: .*questions has only 12"):
        quantise(Options(with_adapter, tmp_path / "out", "int4", group_size=64, samples=13, data=str(questions)))


def test_calibration_without_data(with_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--scheme int4 is calibrated on your own data: pass --data"):
        quantise(Options(with_adapter, tmp_path / "out", "int4", group_size=64))


def test_not_enough_disk(with_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(UserError, match=r"not enough disk: the checkpoint needs .* GiB"):
        quantise(Options(with_adapter, tmp_path / "out", "int8"))
    assert not (tmp_path / "out").exists()


def test_an_output_that_holds_something(with_adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="exists and is not empty; give another -o"):
        quantise(Options(with_adapter, tmp_path, "int8"))


def test_merging_an_adapter_that_is_not_there(with_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--merge-adapter other: .*adapters has tiny-lora"):
        quantise(Options(with_adapter, tmp_path / "out", "int8", merge_adapter="other"))


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


def test_a_quantisation_from_elsewhere_is_named() -> None:
    with pytest.raises(UserError, match="method 'gptq' that is none of int8, int4, nf4, int8-bnb, fp8"):
        scheme_of({"quant_method": "gptq", "bits": 4})
