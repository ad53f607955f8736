"""Networks on a hub of models: files fetched from a repository there, and a repository written.

The hub is the one of huggingface_hub, with its settings: HF_ENDPOINT, HF_TOKEN, HF_HOME.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.system.errors import BenchError, UsageError, one_line
from leaderboards.schema.fields import HUB_REPOSITORY, HUB_SCHEME, escape_unprintable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FORM = "hf:OWNER/NAME[@REVISION][:FILE]"
ADDRESS = re.compile(rf"{HUB_SCHEME}({HUB_REPOSITORY})(?:@([^\s:]+))?(?::(.+))?", re.ASCII)
MODEL_FILE = "model.safetensors"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
MOST_LISTED = 20
LOG_IN = "a token is taken from `hf auth login` or HF_TOKEN"


def is_address(source: str | Path) -> bool:
    """Return whether a source is an address on a hub."""
    return str(source).startswith(HUB_SCHEME)


def locate(source: Path) -> tuple[Path, str]:
    """Return the path of a file, and its address with the commit, "" for a file that is here.

    An address, FORM, is downloaded into the hub's cache, of the newest commit unless it names a
    revision. Raise BenchError where it cannot be had, UsageError for another form and where FILE
    has to choose.
    """
    if not is_address(source):
        return source, ""
    match = ADDRESS.fullmatch(str(source))
    if not match:
        raise UsageError(f"{str(source)!r} is no address on a hub: {FORM}")
    repository, revision, file = match.groups()
    api = open_hub()
    with explained_errors(api, repository, revision):
        info = api.model_info(repository, revision=revision)
        names = sorted(sibling.rfilename for sibling in info.siblings or ())
        file = choose_file(repository, names, file)
        path = api.hf_hub_download(repository, file, revision=info.sha)
    return Path(path), f"{HUB_SCHEME}{repository}@{info.sha}:{file}"


def choose_file(repository: str, names: Sequence[str], wanted: str | None) -> str:
    """Return the file of a network among those of a repository."""
    weights = [name for name in names if name.endswith(SUFFIXES)]
    # Names of strangers, as many as there may be.
    listed = escape_unprintable(", ".join((weights or names)[:MOST_LISTED])) or "nothing"
    if wanted:
        if wanted not in names:
            raise UsageError(f"{repository} has no file {wanted!r}: it has {listed}")
        return wanted
    if not weights:
        suffixes = ", ".join(SUFFIXES)
        raise BenchError(f"{repository} has no file of weights ({suffixes}): it has {listed}")
    if MODEL_FILE not in weights and len(weights) > 1:
        raise UsageError(
            f"{repository} has {listed}: choose one with {HUB_SCHEME}{repository}:FILE"
        )
    return MODEL_FILE if MODEL_FILE in weights else weights[0]


def check_repository(name: str) -> None:
    """Raise UsageError for a name that no repository of a hub has."""
    if not re.fullmatch(HUB_REPOSITORY, name, re.ASCII):
        raise UsageError(f"--hub {name!r}: OWNER/NAME, letters, digits and -, _ or . in them")


def publish(repository: str, files: Mapping[str, bytes], message: str) -> str:
    """Write files to a repository in one commit and return the address of that.

    A repository that does not exist is made, as public as the hub makes it by default.
    """
    api = open_hub()
    from huggingface_hub import CommitOperationAdd

    additions = [CommitOperationAdd(name, content) for name, content in files.items()]
    with explained_errors(api, repository):
        api.create_repo(repository, exist_ok=True)
        commit = api.create_commit(repository, additions, commit_message=message)
    return f"{HUB_SCHEME}{repository}@{commit.oid}"


def open_hub() -> HfApi:
    """Return the client of the hub. Raise BenchError without its package."""
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        need = f"{error.name}: pip install 'robust-distill-bench[hub]'"
        raise BenchError(f"a hub of models needs {need}") from error
    return HfApi(library_name="robust-distill-bench")


@contextmanager
def explained_errors(api: HfApi, repository: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the client raises into a BenchError."""
    from huggingface_hub import errors

    try:
        yield
    except BenchError:
        raise
    except errors.GatedRepoError as error:
        terms = f"accept its terms at {api.endpoint}/{repository}"
        raise BenchError(f"{repository} is for those who {terms}; {LOG_IN}") from error
    except errors.RepositoryNotFoundError as error:
        absent = f"{api.endpoint} has no repository {repository!r}, or it is private"
        raise BenchError(f"{absent}: {LOG_IN}") from error
    except errors.RevisionNotFoundError as error:
        raise BenchError(f"{repository} has no revision {revision!r}") from error
    except errors.HfHubHTTPError as error:
        refused = error.response.status_code in (401, 403)
        advice = f": {LOG_IN}" if refused else ""
        raise BenchError(f"{describe_response(api, error)}{advice}") from error
    # No network, no room, and what the client says of a hub that answers otherwise.
    except Exception as error:
        # Its own text says no more than that there was an error.
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
        raise BenchError(f"{api.endpoint}, {repository}: {one_line(cause or error)}") from error


def describe_response(api: HfApi, error: Any) -> str:
    """Return what the hub answered, with its own reason if it gave one."""
    reason = error.server_message or error.response.reason_phrase
    return f"{api.endpoint} answers {error.response.status_code}, {one_line(Exception(reason))}"
