"""Connections to MySQL and MariaDB: logins that do not send the password, and a limit of what a server may send.

The driver takes a moment to load, so `mysql` imports this module when it connects.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pymysql import _auth
from pymysql.connections import Connection

from capacity_assets.collection.engines.base import Allowance, FailureKind, MeasureError

NATIVE, FAST_SHA2, SHA256 = "mysql_native_password", "caching_sha2_password", "sha256_password"
SCRAMBLE_LENGTH = 20
# The packet of caching_sha2_password with which the server accepts the proof; otherwise it requests the password.
PROOF_ACCEPTED = b"\x01\x03"
PROOFS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "": _auth.scramble_native_password,
    NATIVE: _auth.scramble_native_password,
    FAST_SHA2: lambda password, salt: _auth.scramble_caching_sha2(password, salt[:SCRAMBLE_LENGTH]),
    "client_ed25519": _auth.ed25519_password,
}


class ProvingLogin:
    """A login to an unverified server, which proves knowledge of the password without sending it.

    The driver would send the password to any server that requests it over TLS, verified or not; without TLS, it would
    encrypt the password with any key that the server sends. Here it is encrypted only with the registered key.
    """

    def __init__(self, method: str, public_key: str | None, connection: Any) -> None:
        self._method, self._public_key, self._connection = method, public_key, connection

    def authenticate(self, packet: Any) -> Any:
        """Answer a login packet; raises MeasureError if it requests the password."""
        proof = PROOFS.get(self._method)
        if packet.is_auth_switch_request():
            self._connection.salt = packet.read_all()
            if proof is not None:
                packet = self._exchange(proof(self._connection.password, self._connection.salt))
            elif self._method == SHA256:
                packet = self._exchange(self._encrypted_password())
            else:
                raise self._refusal()
        if not packet.is_extra_auth_data():
            return packet
        if packet.get_all_data() == PROOF_ACCEPTED:
            return self._connection._read_packet()  # noqa: SLF001 -- as logins of the driver do
        if self._method == FAST_SHA2:
            return self._exchange(self._encrypted_password())
        raise self._refusal()

    def _exchange(self, data: bytes) -> Any:
        self._connection.write_packet(data)
        return self._connection._read_packet()  # noqa: SLF001 -- as above

    def _encrypted_password(self) -> bytes:
        # Over TLS a server expects the password unencrypted.
        if self._public_key is None or self._connection._secure:  # noqa: SLF001 -- as above
            raise self._refusal()
        try:
            public_key = Path(self._public_key).read_bytes()
            return bytes(_auth.sha2_rsa_encrypt(self._connection.password, self._connection.salt, public_key))
        except (ValueError, TypeError, AttributeError):
            raise MeasureError(
                FailureKind.SETUP, f"the file {self._public_key} is not an RSA public key in PEM"
            ) from None

    def _refusal(self) -> MeasureError:
        return MeasureError(
            FailureKind.LOGIN,
            f"it asks for the password itself, by the login method {self._method:.40}, but its identity is not "
            "verified. The password was not sent. Register `tls = verify-full` or `verify-ca`, the socket as `host`, "
            "or `tls = off` with a `server_public_key` file",
        )


class ProvingLogins(dict[str, Any]):
    """A map in which the driver finds a `ProvingLogin` for every method."""

    def __init__(self, public_key: str | None) -> None:
        # The driver replaces an empty map.
        super().__init__(dict.fromkeys(PROOFS))
        self._public_key = public_key

    def get(self, name: str | bytes, _default: object = None) -> Any:
        """Return the login of a method."""
        method = name.decode("ascii", "replace") if isinstance(name, bytes) else name
        return partial(ProvingLogin, method, self._public_key)


class BoundedConnection(Connection):
    """A connection that aborts if the server sends too much or too slowly.

    The driver has no such limit. The overridden methods are private; a test with an endless response covers them.
    """

    statement_seconds = math.inf
    version = ""
    dialect: Any = None
    """The statements for this version; see `mysql.Dialect`."""
    _read_timeout: float | None

    def __init__(self, **options: Any) -> None:
        self.allowance = Allowance()
        super().__init__(**options)

    def _request_authentication(self) -> None:
        # The driver sends the password at once if the server's greeting names a method that requests it.
        proving: dict[str, Any] = self._auth_plugin_map  # type: ignore[attr-defined]
        if proving and self._auth_plugin_name not in proving:
            self._auth_plugin_name: str = NATIVE
        super()._request_authentication()  # type: ignore[misc]

    def _execute_command(self, command: int, sql: str | bytes) -> None:
        self.allowance.begin(self.statement_seconds)
        super()._execute_command(command, sql)  # type: ignore[misc]  # not among the published types

    def _read_bytes(self, num_bytes: int) -> bytes:
        received, wanted = bytearray(), num_bytes
        try:
            while True:
                self.allowance.take(wanted)
                wanted = 0  # counted before it is read
                missing = num_bytes - len(received)
                if not missing:
                    return bytes(received)
                received += super()._read_bytes(min(missing, self._wait_for_bytes() or missing))  # type: ignore[misc]
        except MeasureError:
            self._force_close()  # type: ignore[attr-defined]
            raise

    def _wait_for_bytes(self) -> int:
        """Wait for a byte; return how many can be read without waiting. 0: the driver will find the reason."""
        with suppress(OSError):
            return len(self._rfile.peek(1))  # type: ignore[attr-defined]
        return 0
