"""Ed25519 signatures of manifests, with keys in PEM files. Must not know what a manifest says or where it lies.

A manifest holds the SHA-256 of its model and its id, which is its generation: one signature covers the three. It is
the 64 bytes of RFC 8032 over the manifest's bytes as they lie in the file, so OpenSSL 3 verifies it, too:

    openssl pkeyutl -verify -pubin -inkey key.pub.pem -rawin -in manifest.json -sigfile manifest.sig

The private key is PKCS #8 without a password, for its owner alone; the public one is SubjectPublicKeyInfo. The library
`cryptography` comes with the extra edge-cl[signing] and is imported when a key is used.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edge_cl.storage.atomic import NOTHING_CHANGED, open_folder, read_whole, write_new
from edge_cl.storage.errors import KeyFileError, disk_faults

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PUBLIC_SUFFIX = ".pub.pem"
PUBLIC_MODE = 0o644

_MAKE_KEYS = "edge-cl snapshots keygen --out KEY.pem makes a pair of keys"


def signer(path: Path) -> Callable[[bytes], bytes]:
    """From a manifest's bytes to their signature, by the private key in that PEM file.

    Raises KeyFileError if it cannot be used, or may be read by others than its owner.
    """
    key = _private_key(path)
    return key.sign


def verifier(path: Path) -> Callable[[bytes, bytes], bool]:
    """From a manifest's bytes and a signature to whether the private key of the public one in that PEM file made it.

    Raises KeyFileError if it cannot be used.
    """
    with _library():
        from cryptography.exceptions import InvalidSignature
    key = _public_key(path)

    def is_genuine(manifest: bytes, signature: bytes) -> bool:
        try:
            key.verify(signature, manifest)
        except InvalidSignature:
            return False
        return True

    return is_genuine


def write_key_pair(path: Path) -> Path:
    """Write a new private key to `path`, mode 0600, its public key beside it, and return that one's path.

    Raises KeyFileError if one of the files is there already, StorageFault.
    """
    with _library():
        from cryptography.hazmat.primitives import serialization as form
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    key, public = Ed25519PrivateKey.generate(), path.with_name(path.name.removesuffix(".pem") + PUBLIC_SUFFIX)
    private_pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public_pem = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    for file in (path, public):
        if os.path.lexists(file):
            raise KeyFileError(f"{file} exists", hint="name another file: a key that is lost signs nothing any more")
    with disk_faults("write", path, rule=NOTHING_CHANGED), open_folder(path.parent) as folder:
        write_new(folder, path.name, [private_pem])
        write_new(folder, public.name, [public_pem], PUBLIC_MODE)
        os.fsync(folder)
    return public


def _private_key(path: Path) -> Ed25519PrivateKey:
    with _library():
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    pem = _pem(path)
    mode = stat.S_IMODE(path.lstat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyFileError(
            f"{path}: others may use this private key (mode {mode:04o})",
            hint=f"chmod 600 {path}, or a new key if somebody may have read it",
        )
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise KeyFileError(
            f"{path}: the private key has a password", hint="the daemon has nobody to ask: a key without one"
        ) from None
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise KeyFileError(f"{path}: not a private key in PEM", hint=_MAKE_KEYS) from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: a private key, but not of Ed25519", hint=_MAKE_KEYS)
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    with _library():
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    try:
        key = load_pem_public_key(_pem(path))
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise KeyFileError(
            f"{path}: not a public key in PEM", hint=f"it was written beside the private one, as *{PUBLIC_SUFFIX}"
        ) from exc
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path}: a public key, but not of Ed25519", hint=_MAKE_KEYS)
    return key


def _pem(path: Path) -> bytes:
    try:
        return read_whole(path)
    except OSError as exc:
        raise KeyFileError(f"{path}: cannot be read ({exc.strerror})", hint=_MAKE_KEYS) from exc


@contextmanager
def _library() -> Iterator[None]:
    try:
        yield
    except ImportError as exc:
        raise KeyFileError("signatures need the library cryptography", hint="pip install 'edge-cl[signing]'") from exc
