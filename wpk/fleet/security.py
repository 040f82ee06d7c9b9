"""TLS options, as Dask takes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wpk.core.errors import UsageError


@dataclass(frozen=True)
class Tls:
    """Files in PEM form: the authority that signed everyone's certificates, our certificate, our key."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        given = [p for p in (self.ca, self.cert, self.key) if p is not None]
        if given and len(given) < 3:
            raise UsageError("TLS needs all three: --tls-ca, --tls-cert and --tls-key")
        for path in given:
            if not path.is_file():
                raise UsageError(f"{path}: no such file")

    def security(self, role: str) -> Any:
        """The security of a ``client`` or ``worker`` connection; None without TLS: then Dask's own configuration holds."""
        if self.ca is None:
            return None
        from distributed.security import Security

        files = {f"tls_{role}_cert": str(self.cert), f"tls_{role}_key": str(self.key)}
        return Security(require_encryption=True, tls_ca_file=str(self.ca), **files)  # type: ignore[no-untyped-call]


def need_distributed() -> None:
    """Raises UsageError with what to install when Dask is not there."""
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise UsageError(f"a fleet needs Dask: pip install 'wpk[fleet]' ({error})") from error
