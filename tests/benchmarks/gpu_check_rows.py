"""Rows that end in every way that a row can."""

import os
import time

from qwen_vqa.benchmarks.gpu_check.row import NotPossible, Setting, check


def passes(setting: Setting, number: int) -> dict:
    return {"number": number, "device": setting.device}


def fails(setting: Setting) -> dict:
    check(False, "the numbers differ")
    return {}


def is_not_possible(setting: Setting) -> dict:
    raise NotPossible("the card has no float8")


def lacks_a_package(setting: Setting) -> dict:
    setting.needs("no_such_package")
    return {}


def dies(setting: Setting) -> dict:
    print("a last word", flush=True)
    os._exit(9)


def hangs(setting: Setting) -> dict:
    time.sleep(600)
    return {}
