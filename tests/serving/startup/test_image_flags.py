"""The flags of `serve` that say which images are taken."""

from argparse import ArgumentParser

import pytest

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.image_fetch import FetchRules
from qwen_vqa.serving.cli import main
from qwen_vqa.serving.startup.image_flags import add_image_flags, image_rules


def rules(*flags: str, local: str = "", domains: tuple[str, ...] = ()) -> FetchRules:
    parser = ArgumentParser()
    add_image_flags(parser)
    args = parser.parse_args(flags)
    args.allowed_local_media_path, args.allowed_media_domains = local, list(domains)
    return image_rules(args)


def test_without_flags_the_rules_are_the_loaders_own():
    assert rules() == FetchRules()


def test_flags_become_rules():
    made = rules(
        "--max-image-mb", "0.5", "--max-image-pixels", "1000", "--trusted-image-host", "a:8080",
        "--trusted-image-host", "b", "--image-fetch-seconds", "2", "--image-redirects", "0", domains=("b",),
    )  # fmt: skip
    assert (made.limits.max_bytes, made.limits.max_pixels) == (2**19, 1000)
    assert (made.trusted_hosts, made.allowed_hosts) == ({"a:8080", "b"}, {"b"})
    assert (made.total_seconds, made.max_redirects) == (2, 0)


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--max-image-pixels", "0"], "at most 0 pixels"),
        (["--max-image-mb", "0"], "at most 0 bytes"),
        (["--trusted-image-host", "http://a/"], "without http://"),
        (["--image-fetch-seconds", "-1"], "more than 0"),
    ],
)
def test_a_flag_that_cannot_be_is_said(flags: list[str], fault: str):
    with pytest.raises(UserError, match=fault):
        rules(*flags)


def test_clients_do_not_get_this_machines_files():
    with pytest.raises(UserError, match="clients would read files of this machine"):
        rules(local="/srv")


def test_the_help_names_the_flags_and_the_defaults(capsys):
    assert main(["serve", "--help"]) == 0
    printed = capsys.readouterr().out
    defaults = FetchRules()
    for flag, default in (
        ("--max-image-mb", defaults.limits.max_bytes // 2**20),
        ("--max-image-pixels", defaults.limits.max_pixels),
        ("--image-fetch-seconds", f"{defaults.total_seconds:g}"),
        ("--image-redirects", defaults.max_redirects),
        ("--trusted-image-host", "none"),
    ):
        line = next(line for line in printed.splitlines() if line.strip().startswith(flag))
        assert f"(default: {default})" in line
