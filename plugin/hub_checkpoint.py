"""A checkpoint by what the user typed: a folder on this machine, or an id of the Hugging Face Hub."""

import argparse
import re
import sys
from pathlib import Path

from qwen_vqa.plugin.checkpoint_files import check_checkpoint, check_model_type
from qwen_vqa.plugin.errors import UserError, reason_of

CHECKPOINT_HELP = "checkpoint folder, or a hub id (ORG/MODEL)"
REVISION_HELP = "of a hub id: its branch, tag or commit (default: the repository's main branch)"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # the hub's oldest models have no organisation
_ID = re.compile(rf"{_NAME.pattern}/{_NAME.pattern}")
# What a checkpoint consists of; a repository may hold the same weights in other formats beside them.
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*/adapter_model.bin")


def add_revision_flag(parser: argparse.ArgumentParser) -> None:
    """`--revision`, which `local_checkpoint` takes."""
    parser.add_argument("--revision", metavar="NAME", help=REVISION_HELP)


def local_checkpoint(given: str, revision: str | None = None) -> Path:
    """The checked checkpoint folder that a user means; what is on the hub alone is downloaded into the hub's cache.

    A folder of that name on this machine comes first. The hub's own client does the rest, and reads HF_TOKEN, HF_HOME,
    HF_HUB_OFFLINE and HF_ENDPOINT. Files that are there already are not downloaded again.

    Raises:
        UserError: there is no such folder or repository, it cannot be reached, or it is not a checkpoint of ours.
    """
    folder = Path(given).expanduser()
    if folder.is_dir() and revision is not None:
        raise UserError(f"--revision {revision} is of a hub id, and {given} is a folder on this machine: leave it out.")
    if not folder.is_dir() and _ID.fullmatch(given):
        folder = _from_hub(given, revision)
    check_checkpoint(folder)
    return folder


def check_source(given: str, what: str, example: str) -> None:
    """Look whether a folder or a hub id is there that Transformers is to load, by its config alone.

    Before Transformers does: without a network, that asks the hub again and again for 20 seconds.

    Raises:
        UserError: there is neither, or the hub cannot be reached.
    """
    if Path(given).exists():
        return
    if not (_ID.fullmatch(given) or _NAME.fullmatch(given)):
        raise UserError(f"no {what} at {given}: there is no such folder. Give one, or a hub id such as {example}.")
    hub_files(given, None, ["config.json"], what)


def checkpoint_name(folder: Path) -> str:
    """What a checkpoint is called: ORG/MODEL in the hub's cache, where the folder has a commit's name, or the folder's.

    Source of the cache's layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    folder = folder.resolve()
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return folder.name


def _from_hub(repository: str, revision: str | None) -> Path:
    """The snapshot's folder in the hub's cache, downloaded where it is not there."""
    name = _named(repository, revision)
    config = hub_files(repository, revision, ["config.json"], "checkpoint") / "config.json"
    if not config.is_file():
        raise UserError(f"{name} on the hub has no config.json. `qwen-vqa assemble` makes a checkpoint that has.")
    check_model_type(config, f"config.json of {name}")  # before gigabytes of another kind of model
    # To standard error, as the client's progress bars: standard output is the job's.
    print(f"qwen-vqa: {name} from the hub, or from its cache", file=sys.stderr, flush=True)
    return hub_files(repository, revision, list(_FILES), "checkpoint")


def hub_files(repository: str, revision: str | None, patterns: list[str], what: str) -> Path:
    """A folder in the hub's cache with a repository's files of these names, downloaded where they are not there.

    Raises:
        UserError: there is no such repository, or it cannot be had, and what to do.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError  # httpx's or httpx2's, by the hub's release
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()  # what it warns of is said here
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (HFValidationError, HTTPError, OSError) as error:
        why = _why(error, _named(repository, revision))
        raise UserError(f"no {what} at {repository}: there is no such folder, and {why}") from error


def _named(repository: str, revision: str | None) -> str:
    return repository if revision is None else f"{repository} at {revision}"


def _why(error: Exception, name: str) -> str:
    """What keeps a repository's files away, and what to do."""
    from huggingface_hub import constants, errors, get_token

    hub, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return f"as a hub id: {error}"
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return f"{hub} keeps {name} for those who asked for it: ask on its page there, and set HF_TOKEN to your token."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{hub} has no branch, tag or commit of that name: {name}. Give another --revision, or none for main."
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        token = "the token that is set may not read it" if get_token() else "without HF_TOKEN it cannot be read"
        return f"{hub} has no {name}. A hub id is ORG/MODEL; if it is a private one, {token}."
    if isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return (
            f"HF_HUB_OFFLINE is set while {name} is not whole in the hub's cache, {cache}. Where there is a network, "
            f"`hf download {name.replace(' at ', ' --revision ')}` puts it there."
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{hub} cannot be reached to look for {name} ({error.__cause__ or error}); the cache, {cache}, lacks it."
    return f"the download from {hub} broke off ({reason_of(error)}). Run it again: files that are whole are kept."
