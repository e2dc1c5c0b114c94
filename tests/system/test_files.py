"""Credentials in URLs are refused and never shown; streams and roots record none."""

from pathlib import Path

import pytest

from alphafuse.data.sources.folder import import_folder
from alphafuse.data.streams import Stream
from alphafuse.errors import AlphafuseError
from alphafuse.system.files import one_line, require_no_secrets, to_path, without_secrets

SECRETS = (
    "https://me:{}@example.org/clips",
    "https://{}@example.org/clips",
    "s3://AKIA1:{}@bucket/clips",
    "https://bucket.s3.amazonaws.com/clips?X-Amz-Credential=a&X-Amz-Signature={}",
    "https://account.blob.core.windows.net/clips?sv=2024&sig={}",
    "https://storage.googleapis.com/clips?GoogleAccessId=x&Signature={}",
    "https://example.org/clips?part=1&access_token={}",
    "hf://datasets/me/clips?token={}",
    "simplecache::https://me:{}@example.org/clips",
)
PLAIN = (
    "s3://bucket/clips/a=b",
    "hf://datasets/me/clips@main/folder",
    "abfs://container@account.dfs.core.windows.net/clips",
    "sftp://me@host:22/clips",
    "https://example.org/clips?part=1#top",
    "clips/me:you@home/a.mp4",
)


@pytest.mark.parametrize("url", SECRETS)
def test_a_url_with_credentials_is_refused_without_showing_them(url: str, tmp_path: Path) -> None:
    secret = "hunter2XYZ"
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "a.mp4").touch()
    for refuse in (
        lambda text: require_no_secrets(text),
        lambda text: to_path(text),
        lambda text: Stream("ear", text, "sound"),
        lambda text: import_folder(text, tmp_path / "root"),
        lambda text: import_folder(tmp_path, tmp_path / "root", stores=text),
    ):
        with pytest.raises(AlphafuseError, match=r"environment \(s3://: AWS_ACCESS_KEY_ID") as caught:
            refuse(url.format(secret))
        assert secret not in str(caught.value)
    assert secret not in one_line(OSError(f"can't open {url.format(secret)}: no"))
    assert secret not in one_line(Path(url.format(secret)))  # which has one slash instead of two
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("url", PLAIN)
def test_other_urls_and_names_pass_as_they_are(url: str) -> None:
    require_no_secrets(url)
    assert without_secrets(url) == url
