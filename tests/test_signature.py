"""Signatures of manifests: made and verified with real keys, and refused with files that are no such key."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.storage.errors import KeyFileError
from edge_cl.storage.inspection import damage_of
from edge_cl.storage.published import sum_line
from edge_cl.storage.shelf import Shelf
from edge_cl.storage.signature import signer, verifier, write_key_pair

WITHOUT_THE_EXTRA = """
import sys
sys.modules["cryptography"] = None
from pathlib import Path
from edge_cl.storage.errors import KeyFileError
from edge_cl.storage.signature import signer, verifier, write_key_pair
for use in (signer, verifier, write_key_pair):
    try:
        use(Path(sys.argv[1]))
    except KeyFileError as exc:
        print(exc, "|", exc.hint)
"""


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    write_key_pair(path)
    return path


def public(key: Path) -> Path:
    return key.with_name("key.pub.pem")


def test_a_key_pair_is_private_and_public(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        beside = write_key_pair(tmp_path / "device.pem")
    finally:
        os.umask(old)
    assert beside == tmp_path / "device.pub.pem"
    assert stat.S_IMODE((tmp_path / "device.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(beside.stat().st_mode) == 0o644
    private = form.load_pem_private_key((tmp_path / "device.pem").read_bytes(), password=None)
    assert isinstance(private, Ed25519PrivateKey)
    assert private.public_key() == form.load_pem_public_key(beside.read_bytes())


@pytest.mark.parametrize("there", ["key.pem", "key.pub.pem"])
def test_a_key_is_never_written_over(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    with pytest.raises(KeyFileError, match=f"{there} exists"):
        write_key_pair(tmp_path / "key.pem")
    assert (tmp_path / there).read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


@settings(deadline=None, max_examples=50)
@given(manifest=st.binary(max_size=200), bit=st.integers(min_value=0))
def test_any_flipped_bit_of_manifest_or_signature_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, manifest: bytes, bit: int
) -> None:
    key = tmp_path_factory.mktemp("keys") / "key.pem"
    is_genuine = verifier(write_key_pair(key))
    signature = signer(key)(manifest)
    assert len(signature) == 64
    assert is_genuine(manifest, signature)
    place, mask = bit % (8 * (len(manifest) + 64)) // 8, 1 << bit % 8
    changed = bytearray(manifest + signature)
    changed[place] ^= mask
    assert not is_genuine(bytes(changed[: len(manifest)]), bytes(changed[len(manifest) :]))


def test_a_signature_is_that_of_rfc_8032(tmp_path: Path) -> None:
    """Its test 2 (section 7.1): one byte, 0x72."""
    secret = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    private = Ed25519PrivateKey.from_private_bytes(secret)
    key = tmp_path / "key.pem"
    key.touch(0o600)
    key.write_bytes(private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
    assert signer(key)(b"\x72").hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )


def rewrite(manifest: Path, content: str) -> None:
    """As somebody would who means it: with the sum that belongs to it."""
    manifest.write_text(content)
    manifest.with_name("manifest.sha256").write_bytes(sum_line(manifest.read_bytes()))


def test_a_signed_snapshot_is_sound_and_every_change_of_it_is_not(tmp_path: Path, key: Path) -> None:
    shelf, is_genuine = Shelf(tmp_path, sign=signer(key)), verifier(public(key))
    entry = shelf.publish(b"model", {"labels": ["ok"]})
    assert damage_of(shelf, entry.id, is_genuine) == []
    manifest = entry.path.with_name("manifest.json")
    content = manifest.read_text()
    Ed25519PublicKey.verify(  # by the library alone, as somebody else's program would
        form.load_pem_public_key(public(key).read_bytes()),  # type: ignore[arg-type]
        entry.path.with_name("manifest.sig").read_bytes(),
        manifest.read_bytes(),
    )
    rewrite(manifest, content.replace('"ok"', '"no"'))
    assert damage_of(shelf, entry.id) == []  # its own checks cannot see this
    assert damage_of(shelf, entry.id, is_genuine) == ["not signed by this key, or changed since"]
    rewrite(manifest, content)
    entry.path.write_bytes(b"other")
    assert "SHA-256 does not match" in damage_of(shelf, entry.id, is_genuine)[0]


def test_an_older_snapshot_under_a_newer_number_is_noticed(tmp_path: Path, key: Path) -> None:
    """A replay: the old one's files, genuine signature and all, in the new one's place."""
    shelf, is_genuine = Shelf(tmp_path, sign=signer(key)), verifier(public(key))
    old, new = shelf.publish(b"old", {}), shelf.publish(b"new", {})
    for name in ("model.onnx", "manifest.json", "manifest.sha256", "manifest.sig"):
        new.path.with_name(name).write_bytes(old.path.with_name(name).read_bytes())
    assert "not the manifest of 000002" in damage_of(shelf, "000002", is_genuine)[0]
    manifest = new.path.with_name("manifest.json")
    rewrite(manifest, json.dumps({**json.loads(manifest.read_text()), "id": "000002"}))
    assert damage_of(shelf, "000002", is_genuine) == ["not signed by this key, or changed since"]


def test_an_unsigned_snapshot_and_one_of_another_key_are_not_genuine(tmp_path: Path, key: Path) -> None:
    write_key_pair(tmp_path / "other.pem")
    unsigned = Shelf(tmp_path).publish(b"1", {})
    foreign = Shelf(tmp_path, sign=signer(tmp_path / "other.pem")).publish(b"2", {})
    shelf, is_genuine = Shelf(tmp_path), verifier(public(key))
    assert damage_of(shelf, unsigned.id, is_genuine) == ["not signed"]
    assert damage_of(shelf, foreign.id, is_genuine) == ["not signed by this key, or changed since"]
    assert damage_of(shelf, unsigned.id) == damage_of(shelf, foreign.id) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610])
def test_a_private_key_that_others_may_use_is_refused(key: Path, mode: int) -> None:
    key.chmod(mode)
    with pytest.raises(KeyFileError, match=rf"others may use this private key \(mode 0{mode:o}\)") as caught:
        signer(key)
    assert f"chmod 600 {key}" in caught.value.hint


def curve() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())


def curve_public() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return key.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)


def with_password() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"secret")
    )


@pytest.mark.parametrize(
    ("use", "pem", "said"),
    [
        (signer, curve, "a private key, but not of Ed25519"),
        (signer, with_password, "has a password"),
        (signer, curve_public, "not a private key in PEM"),
        (signer, bytes, "not a private key in PEM"),
        (verifier, curve_public, "a public key, but not of Ed25519"),
        (verifier, curve, "not a public key in PEM"),
        (verifier, lambda: b"\xff\x00", "not a public key in PEM"),
    ],
)
def test_a_file_that_is_no_such_key_is_refused(
    tmp_path: Path, use: Callable[[Path], object], pem: Callable[[], bytes], said: str
) -> None:
    file = tmp_path / "some.pem"
    file.touch(0o600)
    file.write_bytes(pem())
    with pytest.raises(KeyFileError, match=said) as caught:
        use(file)
    assert caught.value.hint


@pytest.mark.parametrize("use", [signer, verifier])
def test_a_missing_key_file_is_named(tmp_path: Path, use: Callable[[Path], object]) -> None:
    with pytest.raises(KeyFileError, match=r"none\.pem: cannot be read \(No such file") as caught:
        use(tmp_path / "none.pem")
    assert "keygen" in caught.value.hint


def test_without_the_extra_its_name_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_THE_EXTRA, str(tmp_path / "key.pem")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = "signatures need the library cryptography | pip install 'edge-cl[signing]'"
    assert done.stdout.splitlines() == [line] * 3
    assert list(tmp_path.iterdir()) == []


def test_a_shelf_without_a_key_does_not_import_the_library() -> None:
    code = "import sys, edge_cl.storage.shelf, edge_cl.cli_snapshots; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
