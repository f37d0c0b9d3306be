"""The suite measures a server that it starts itself, keeps what it found, and says what failed."""

import json
import sys
from pathlib import Path

import pytest

from qwen_vqa.benchmarks.comparison import servers
from qwen_vqa.benchmarks.comparison.candidates import Candidate, Launch, Maker
from qwen_vqa.benchmarks.comparison.measurement import SECOND_PICTURES, MeasurementSetting, kept, measure
from qwen_vqa.benchmarks.comparison.servers import running
from qwen_vqa.benchmarks.load_generator.sample_images import draw
from qwen_vqa.benchmarks.load_generator.workload import WorkloadSpec, conversations
from qwen_vqa.plugin.errors import UserError

SETTING = MeasurementSetting(cells=((1, 2), (2, 4)), output_tokens=3, seed=1, warm_up=0, words=0)
NULL = Launch((sys.executable, "-m", "qwen_vqa.benchmarks.load_generator.null_server"))


def test_a_candidate_is_started_asked_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "null.json"
    result = measure(Candidate("null", "nothing", "bfloat16", lambda: NULL), SETTING, file)
    assert [(cell["users"], cell["summary"]["completed"]) for cell in result["cells"]] == [(1, 2), (2, 4)]
    assert all("records" not in cell for cell in result["cells"])
    assert kept(file, SETTING) == json.loads(file.read_text()) == result
    assert kept(file, MeasurementSetting(**{**SETTING.__dict__, "seed": 2})) is None


def test_a_server_that_ends_is_said_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    launch = Launch((sys.executable, "-c", "import sys; sys.exit('no such model')"))
    with pytest.raises(UserError, match=r"ended with 1; see .*log"), running(launch, log):
        pass
    assert "no such model" in log.read_text()


def test_what_a_server_started_is_stopped_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "STOP_SECONDS", 1)
    # One that ignores SIGTERM.
    code = "import signal, sys; signal.signal(15, signal.SIG_IGN); sys.argv[1:1] = []; "
    code += "from qwen_vqa.benchmarks.load_generator.null_server import *; "
    code += "web.run_app(application(), port=int(sys.argv[-1]), "
    code += "host='127.0.0.1', handle_signals=False)"
    with running(Launch((sys.executable, "-c", code)), tmp_path / "log") as url:
        port = int(url.rsplit(":", 1)[1].removesuffix("/v1"))
    with pytest.raises(OSError), servers.socket.create_connection(("127.0.0.1", port), timeout=2):
        pass


def test_keys_are_each_candidates_own() -> None:
    maker = Maker("0.5b", Path("unused"), Path("unused"), 32, 8)
    keys = [candidate.key for candidate in maker.candidates("float32", "bfloat16")]
    # --only names them before it is known which type is the faster.
    assert keys == [candidate.key for candidate in maker.candidates("bfloat16", "float32")]
    assert len(keys) == len(set(keys))
    assert {"ours", "ours-int8", "a", "b", "c", "d", "e", "e-q8"} <= set(keys)


def test_no_cell_asks_about_the_pictures_of_another(tmp_path: Path) -> None:
    setting = MeasurementSetting(cells=((1, 3), (2, 4), (2, 4)), output_tokens=1, seed=1, warm_up=2, words=0)
    candidate = Candidate("null", "nothing", "bfloat16", lambda: NULL, turns=True)
    result = measure(candidate, setting, tmp_path / "null.json")
    spec = WorkloadSpec(models=(("null", 1.0),))
    seen: set[bytes] = set()
    for cell in result["cells"]:
        pictures = {
            draw(picture.seed, picture.width, picture.height)
            for talk in conversations(spec, cell["seed"], 6)
            for turn in talk.turns
            for picture in turn.pictures
        }
        assert len(pictures) == 6
        assert not pictures & seen
        seen |= pictures
    assert len(seen) == 18
    assert len(result["second_question"]["first_second_ms_cached"]) == SECOND_PICTURES
