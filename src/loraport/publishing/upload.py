"""Put files into a repository of the Hub in one commit; a card that is not ours is never replaced."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport.errors import InputError, OutputError
from loraport.publishing.card import is_ours

CARD = "README.md"


@dataclass(frozen=True)
class Published:
    """Where it lies now."""

    commit: str
    pull_request: str | None
    created: bool


def publish(
    repo: str, files: Mapping[str, Path | bytes], message: str, *, create: bool = False, pull_request: bool = False
) -> Published:
    """Put all files into a repository in one commit, or propose them as a pull request.

    The commit is made on the state in which the card was looked at, so that one written meanwhile is not replaced.
    Raises InputError without a token, a network or permission, OutputError where the card there is another's.
    """
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise InputError("push needs huggingface_hub; install it with: pip install 'loraport[hub]'") from error
    from huggingface_hub import constants  # the package itself does not offer it in every version

    if constants.HF_HUB_OFFLINE:
        raise InputError("HF_HUB_OFFLINE forbids to publish; unset it, or give --dry-run to see what would be sent")
    if not hub.get_token():
        raise InputError(
            "the Hub wants to know who publishes: `hf auth login` with a token that may write, or HF_TOKEN"
        )
    api = hub.HfApi()
    with _explained(repo):
        created = _create(api, repo) if create else False
        state: str | None = api.model_info(repo, timeout=30).sha
        _check_card(api, repo, state)
        added = [hub.CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
                 for name, content in files.items()]  # fmt: skip
        done = api.create_commit(repo, added, commit_message=message, create_pr=pull_request, parent_commit=state)
    return Published(str(done.commit_url), done.pr_url, created)


def _create(api: Any, repo: str) -> bool:
    """Create a private repository where there is none; return whether it was."""
    if api.repo_exists(repo):
        return False
    api.create_repo(repo, private=True)
    return True


def _check_card(api: Any, repo: str, state: str | None) -> None:
    if not api.file_exists(repo, CARD, revision=state):
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(api.hf_hub_download(repo, CARD, revision=state, local_dir=folder))
        text = path.read_text(encoding="utf-8", errors="replace")
    if not is_ours(text):
        raise OutputError(
            f"{repo} has a card that loraport did not write, and it is not replaced; name another repository, or take "
            "the card away on the Hub first"
        )


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one sentence."""
    try:
        yield
    except (InputError, OutputError):
        raise
    except Exception as error:  # the Hub's client raises its own, requests' or httpx's errors
        status = getattr(getattr(error, "response", None), "status_code", None)
        raise InputError(_reason(repo, status, error)) from error


def _reason(repo: str, status: int | None, error: Exception) -> str:
    if status == 401 and type(error).__name__ != "RepositoryNotFoundError":
        return f"the Hub does not accept the token for {repo}; `hf auth login` with one that may write"
    if status in (401, 404):
        return (
            f"{repo} is not on the Hub, or your token may not see it; check the name, or give --create for a new "
            "private repository"
        )
    if status == 403:
        return f"your token may not write to {repo}; take one that may, or give --create-pr to propose the files"
    if status in (409, 412):
        return f"{repo} was changed by somebody else meanwhile, and nothing was published; give the command again"
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if status is not None:
        return f"the Hub refuses the files for {repo} ({status}: {first}); nothing was published"
    if isinstance(error, ValueError):  # the client's own checks, of the card's fields among them
        return f"the Hub does not take the card or a name for {repo} ({first}); nothing was published"
    return (
        f"the Hub cannot be reached for {repo} ({first}); a commit goes in whole or not at all, so give the command "
        "again later"
    )
