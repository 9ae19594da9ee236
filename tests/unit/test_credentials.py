"""References to passwords: what they may look like, where they lead, and that nothing repeats a password."""

from __future__ import annotations

from pathlib import Path

import pytest

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.settings import Settings
from capacity_assets.collection.credentials import (
    CredentialError,
    SecretFolders,
    checked_reference,
    password_of,
    readable_by_others,
)


def places(folder: Path) -> SecretFolders:
    return SecretFolders(folder, ("DB_*", "NOT_THERE"), (folder,))


@pytest.mark.parametrize("reference", ["env:DB_7", "file:/etc/capacity/db", "secret:db-7.password", "own"])
def test_the_known_forms_are_taken(reference: str) -> None:
    assert checked_reference(reference) == reference


@pytest.mark.parametrize(
    "reference",
    ["hunter2", "env:", "env:7A", "file:relative", "secret:../etc/shadow", "secret:", "own:x", "plain:x", ""],
)
def test_everything_else_is_refused_and_not_repeated(reference: str) -> None:
    with pytest.raises(ValidationError) as refused:
        checked_reference(reference)

    assert "env:NAME, file:/PATH or secret:NAME" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_password_is_found_in_a_variable_in_the_env_file_in_a_file_and_in_the_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DB_7", "exported")
    (tmp_path / ".env").write_text("DB_7=shadowed\nDB_8=from the file\n")
    (tmp_path / "db-9").write_text("with = signs\n")

    assert password_of("env:DB_7", places(tmp_path)) == "exported"
    assert password_of("env:DB_8", places(tmp_path)) == "from the file"
    assert password_of(f"file:{tmp_path / 'db-9'}", places(tmp_path)) == "with = signs"
    assert password_of("secret:db-9", places(tmp_path)) == "with = signs"


def test_what_is_missing_empty_or_unreadable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")

    for reference, reason in {
        "env:NOT_THERE": "the variable NOT_THERE is missing or empty",
        "secret:not-there": f"the file {tmp_path / 'not-there'} is missing or empty",
        "secret:empty": f"the file {tmp_path / 'empty'} is missing or empty",
        "secret:binary": "cannot be read (it is not text)",
        f"file:{tmp_path}": "cannot be read (Is a directory)",
    }.items():
        with pytest.raises(CredentialError) as failed:
            password_of(reference, places(tmp_path))
        assert reason in str(failed.value)


def test_a_file_that_everybody_can_read_is_noticed(tmp_path: Path) -> None:
    secret = tmp_path / "db"
    secret.write_text("x")
    secret.chmod(0o644)
    assert readable_by_others("secret:db", places(tmp_path))
    secret.chmod(0o600)
    assert not readable_by_others("secret:db", places(tmp_path))
    assert not readable_by_others("env:X", places(tmp_path))
    assert not readable_by_others(None, places(tmp_path))


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("env:CAPACITY_DATABASE_URL", "CAPACITY_DATABASE_URL is a variable of capacity_assets and cannot hold"),
        ("env:DAGSTER_PG_PASSWORD", "DAGSTER_PG_PASSWORD is a variable of capacity_assets and cannot hold"),
        ("env:AWS_SECRET_ACCESS_KEY", "variable AWS_SECRET_ACCESS_KEY may not hold the password of a server"),
        ("file:/etc/shadow", "the file /etc/shadow is not in a folder for passwords"),
        ("file:{folder}/../shadow", "is not in a folder for passwords"),
        ("secret:link", "is not in a folder for passwords"),
    ],
)
def test_a_registrar_cannot_have_any_secret_sent_to_a_host_of_his_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, reason: str
) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", "postgresql://u:secret@h/d")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    (tmp_path / "link").symlink_to("/etc/hostname")

    with pytest.raises(CredentialError, match=reason):
        password_of(reference.format(folder=tmp_path), SecretFolders(tmp_path, ("*PASSWORD*", "CAPACITY_*"), ()))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("capacity.env", "CAPACITY_DATABASE_URL=postgresql://u:secret@h/d\n"),
        (".env", "SECRET=secret\n"),
        ("link", None),
        ("capacity", "export CAPACITY_DATABASE_URL=postgresql://u:secret@h/d\n"),
        ("variables", "# of the service\nSECRET=secret\n"),
        ("server-key.pem", "-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n"),
    ],
)
def test_a_file_of_variables_or_a_key_beside_the_passwords_is_no_password(
    tmp_path: Path, name: str, content: str | None
) -> None:
    """/etc/capacity contains the passwords of servers and the environment file of the units."""
    (tmp_path / "capacity.env").write_text("CAPACITY_DATABASE_URL=secret\n")
    if content is None:
        (tmp_path / name).symlink_to(tmp_path / "capacity.env")
    else:
        (tmp_path / name).write_text(content)

    with pytest.raises(CredentialError, match="No password: ") as failed:
        password_of(f"file:{tmp_path / name}", SecretFolders(Path("/nowhere"), (), (tmp_path,)))

    assert "secret" not in str(failed.value)


def test_by_default_variables_are_told_by_their_name_and_files_by_their_folder(tmp_path: Path) -> None:
    default = SecretFolders.of(Settings())

    assert (default.mounted, default.variables) == (Path("/run/secrets"), ("*PASSWORD*",))
    assert default.folders == (Path("/etc/capacity"), Path("/run/credentials"))
    default.refuse_what_is_not_allowed("env:DB_7_PASSWORD")
    default.refuse_what_is_not_allowed("file:/etc/capacity/db-7.password")
    with pytest.raises(CredentialError):
        default.refuse_what_is_not_allowed(f"file:{tmp_path}/x")
