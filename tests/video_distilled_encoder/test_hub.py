import inspect
import os
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch

from video_distilled_encoder import Encoder, InputError, encoder, hub

NAME = "owner/encoder"
COMMIT = "a" * 40
OLD = "b" * 40


@pytest.fixture
def cache(tiny, tiny_directory, tmp_path):
    """A Hub cache with two revisions of a repository, as huggingface_hub lays it out."""
    repository = tmp_path / "hub" / "models--owner--encoder"
    for commit, weights in ((COMMIT, tiny_directory), (OLD, None)):
        snapshot = repository / "snapshots" / commit
        if weights:
            shutil.copytree(weights, snapshot)
        else:
            other = Encoder(tiny.config.build_backbone(), tiny.config)
            other.save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "v0").write_text(OLD)
    return tmp_path / "hub"


def test_loads_from_the_cache_offline_by_branch_tag_and_commit(tiny, cache):
    main = Encoder.from_pretrained(NAME, cache_dir=cache, local_files_only=True)
    assert torch.equal(main.backbone.norm.weight, tiny.backbone.norm.weight)
    assert torch.equal(main.backbone.pos_embed, tiny.backbone.pos_embed)
    for revision, same in (("main", True), (COMMIT, True), ("v0", False), (OLD, False)):
        loaded = Encoder.from_pretrained(NAME, revision=revision, cache_dir=cache, local_files_only=True)
        assert torch.equal(loaded.backbone.pos_embed, tiny.backbone.pos_embed) == same


def test_timm_loads_the_same_repository_from_the_cache(tiny, cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = timm.create_model(f"hf-hub:{NAME}", pretrained=True, cache_dir=cache).eval()
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model.forward_features(pixels)[:, 1:], tiny(pixels).patches)


def test_offline_and_not_cached_is_one_sentence(cache):
    with pytest.raises(InputError, match=r"neither a local directory nor in the Hub cache.* holds nota/vfd-vits16"):
        Encoder.from_pretrained("owner/other", cache_dir=cache, local_files_only=True)
    with pytest.raises(InputError, match="at revision v9"):
        Encoder.from_pretrained(NAME, revision="v9", cache_dir=cache, local_files_only=True)


def test_an_incomplete_snapshot_is_refused(cache):
    (cache / "models--owner--encoder" / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        Encoder.from_pretrained(NAME, cache_dir=cache, local_files_only=True)


@pytest.mark.parametrize("name", ["no-such-thing", "a/b/c", "../up/there", "owner/.hidden", "owner/ space"])
def test_names_that_are_none_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="neither a directory nor"):
        Encoder.from_pretrained(name, local_files_only=True)


def test_order_local_directory_bundled_release_hub(tiny_directory, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "BUNDLED_RELEASES", tmp_path / "releases")
    bundled = shutil.copytree(tiny_directory, tmp_path / "releases" / "owner" / "encoder")
    calls = []

    def snapshot_download(name, **options):
        calls.append((name, options["revision"]))
        return str(tiny_directory)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert hub.find_model(NAME) == bundled
    assert hub.find_model(NAME, revision="main") == tiny_directory
    assert calls == [(NAME, "main")]
    (tmp_path / "owner" / "encoder").mkdir(parents=True)
    assert hub.find_model(NAME) == hub.Path(NAME)


def test_push_to_hub_uploads_a_whole_model_directory(tiny, tmp_path, monkeypatch):
    sent = {}

    class Api:
        def __init__(self, token):
            sent["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            sent["private"] = private
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id, folder_path, revision, commit_message):
            sent["folder"] = shutil.copytree(folder_path, tmp_path / "uploaded")
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    # The methods called must exist in huggingface_hub, with these arguments.
    for name in ("create_repo", "upload_folder"):
        real = inspect.signature(getattr(huggingface_hub.HfApi, name)).parameters
        assert set(inspect.signature(getattr(Api, name)).parameters) <= set(real)
    monkeypatch.setattr(encoder, "HfApi", Api)
    assert tiny.push_to_hub(NAME, private=True, token="secret") == f"https://hub/{NAME}/commit/1"
    assert (sent["token"], sent["private"]) == ("secret", True)
    again = Encoder.from_pretrained(sent["folder"])
    assert torch.equal(again.backbone.pos_embed, tiny.backbone.pos_embed)


def test_no_test_asks_the_network():
    assert os.environ["HF_HUB_OFFLINE"] != "1" or huggingface_hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("name", [NAME, "no name at all", ""])
def test_what_the_hub_does_not_take_is_one_sentence(shallow_directory, monkeypatch, name):
    shallow = Encoder.from_pretrained(shallow_directory)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=f"the encoder cannot be uploaded to {name} on the Hub: ") as error:
        shallow.push_to_hub(name, token="hf_none")
    assert "\n" not in str(error.value)


def test_a_snapshot_in_part_says_so(tmp_path, monkeypatch):
    class InPartError(huggingface_hub.errors.LocalEntryNotFoundError):
        snapshot_path = "somewhere"

    def snapshot_download(*_, **__):
        raise InPartError("some files are missing")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(InputError, match="owner/encoder is in the Hub cache in part only: its download was interrup"):
        hub.find_model(NAME)
