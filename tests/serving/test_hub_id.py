"""`qwen-vqa serve ORG/MODEL`: a private checkpoint of a hub, under its id."""

from pathlib import Path

import httpx
from openai import OpenAI

from qwen_vqa.train.verify.local_server import started_server
from tests.hub_server import Repository, hub_server, surroundings
from tests.server import ONE_CORE
from tests.tiny import user


def test_a_hub_id_is_served_under_its_name_by_its_commit(tiny_with_adapter: Path, tmp_path: Path):
    with hub_server() as hub:
        hub.models["me/tiny"] = Repository({"main": tiny_with_adapter / "adapters", "v1": tiny_with_adapter}, "hf_mine")
        environment = surroundings(hub, tmp_path, HF_TOKEN="hf_mine", **ONE_CORE)
        with (tmp_path / "log").open("w") as log:
            arguments = ["me/tiny", "--revision", "v1", "--dtype", "float32"]
            with started_server(arguments, stderr=log, stdout=log, environment=environment) as (address, _):
                asked_of_hub = list(hub.requests)
                client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
                assert [model.id for model in client.models.list()] == ["me/tiny", "tiny-lora"]
                assert client.models.retrieve("me/tiny").id == "me/tiny"
                assert httpx.get(f"{address}/v1/models/").status_code == 404
                for name in ("me/tiny", "tiny-lora"):
                    client.chat.completions.create(model=name, messages=[user("why?")], max_tokens=2)
    assert hub.requests == asked_of_hub  # the engine has a folder, and asks for nothing
    assert sorted(hub.sent()) == sorted(set(hub.sent()))
    assert "hf_mine" not in (tmp_path / "log").read_text()
