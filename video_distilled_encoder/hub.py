"""From a model's name to a directory on this machine: local folder, bundled release, or the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from video_distilled_encoder import model_directory
from video_distilled_encoder.errors import InputError

BUNDLED_RELEASES = Path(__file__).parent / "releases"
DEFAULT_RELEASE = "nota/vfd-vits16-warm"
"""What commands and stacks use where no model is named: the bundled release that sees best."""


def find_model(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Return the model directory that `name` stands for, downloading it if it is on the Hub only.

    Looked up in this order: a local directory; a release bundled with this package (unless a `revision` is asked for);
    the Hub, through its ordinary cache and offline mode.

    Raises:
        InputError: there is no such model, or it cannot be reached.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if not _is_repository_name(str(name)):
        raise InputError(f"{name} is neither a directory nor a Hub name of the form owner/name; {_bundled()}")
    bundled = BUNDLED_RELEASES / name
    if revision is None and bundled.is_dir():
        return bundled
    at = f" at revision {revision}" if revision else ""
    try:
        directory = snapshot_download(
            str(name),
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            allow_patterns=list(model_directory.FILES),
        )
    except GatedRepoError as error:
        raise InputError(f"{name} on the Hub is gated; ask for access, then log in with `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{name} on the Hub has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"there is no local directory and no Hub repository {name} that you may read; {_bundled()}"
        ) from error
    except HFValidationError as error:
        raise InputError(f"{name} is neither a directory nor a valid Hub name: {error}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if hasattr(error, "snapshot_path"):  # of newer versions, which know what a snapshot should hold
            raise InputError(
                f"{name}{at} is in the Hub cache in part only: its download was interrupted; connect, and fetch it "
                "again, as by `hf download`"
            ) from error
        raise InputError(
            f"{name}{at} is neither a local directory nor in the Hub cache, and the Hub is out of reach or offline "
            f"mode is on; connect, or fetch it beforehand with `hf download`; {_bundled()}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise InputError(f"{name}{at} could not be fetched from the Hub: {error}") from error
    return Path(directory)


def _bundled() -> str:
    """Tell which releases are at hand."""
    names = sorted(str(path.parent.relative_to(BUNDLED_RELEASES)) for path in BUNDLED_RELEASES.glob("*/*/config.json"))
    return f"this package holds {' and '.join(names)}"


def _is_repository_name(name: str) -> bool:
    """Tell whether `name` has the form owner/name, without any path trickery."""
    parts = name.split("/")
    return len(parts) == 2 and all(part and not part.startswith(".") for part in parts)
