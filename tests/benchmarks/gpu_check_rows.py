"""Rows that end in every way that a row can."""

import os
import time

from qwen_vqa.benchmarks.gpu_check.check_row import CheckSetting, NotPossible, check


def passes(setting: CheckSetting, number: int) -> dict:
    return {"number": number, "device": setting.device}


def fails(setting: CheckSetting) -> dict:
    check(False, "the numbers differ")
    return {}


def is_not_possible(setting: CheckSetting) -> dict:
    raise NotPossible("the card has no float8")


def lacks_a_package(setting: CheckSetting) -> dict:
    setting.needs("no_such_package")
    return {}


def dies(setting: CheckSetting) -> dict:
    print("a last word", flush=True)
    os._exit(9)


def hangs(setting: CheckSetting) -> dict:
    time.sleep(600)
    return {}
