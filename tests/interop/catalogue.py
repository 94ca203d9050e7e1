"""The clients of other languages: what each is, how it is started and found, and what it cannot do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SCRIPTS: Final = Path(__file__).resolve().parent / "clients"
ALL_VERSIONS: Final = ("1.0", "1.1", "1.2")
PROBE_SECONDS_MAX: Final = 30.0
INSTALL: Final = "is not installed; `python3 tools/interop.py` installs it"


def default_prefix() -> Path:
    """Where libraries are installed, not in the tree: INTEROP_DIR, else a cache folder of the user."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("INTEROP_DIR") or Path(cache) / "stompd-interop")


@dataclass(frozen=True, slots=True)
class Client:
    """One library over one version of STOMP.

    `pip`, `npm` and `apt` name what is to be installed. `kinds` are the headers of matrix.HEADERS that come
    through it unharmed, and `misreads` those of them that it may spoil when it receives. What is missing is
    the library's own limit, whatever the broker.
    """

    library: str
    version: str
    command: tuple[str, ...]
    probe: tuple[str, ...]
    kinds: frozenset[str]
    misreads: frozenset[str] = frozenset()
    pip: str = ""
    npm: str = ""
    apt: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As tests and tables say it; also part of queue names."""
        return f"{self.library}-over-{self.version}"

    def environment(self, prefix: Path) -> dict[str, str]:
        """The variables under which its script finds the library."""
        found = os.environ | {"STOMP_VERSION": self.version}
        if self.pip:
            found["PYTHONPATH"] = str(prefix / self.pip)
        if self.npm:
            found["NODE_PATH"] = str(prefix / "node_modules")
        return found

    def missing(self, prefix: Path) -> str | None:
        """Why it cannot run here; None if it can."""
        if shutil.which(self.probe[0]) is None:
            return f"{self.probe[0]} {INSTALL}"
        done = subprocess.run(
            self.probe,
            env=self.environment(prefix),
            capture_output=True,
            timeout=PROBE_SECONDS_MAX,
            check=False,
        )
        return None if done.returncode == 0 else f"{self.library} {INSTALL}"


def _kinds(version: str, escapes: frozenset[str]) -> frozenset[str]:
    """The header kinds that a library passes on over that version; it escapes in the versions `escapes`.

    STOMP 1.0 has no escapes, so a colon passes as it is, and a newline cannot.
    """
    if version == "1.0":
        return frozenset({"plain", "utf8", "colon"})
    return frozenset({"plain", "utf8", "colon", "escapes"} if version in escapes else {"plain", "utf8"})


def _over(
    versions: tuple[str, ...],
    library: str,
    command: tuple[str, ...],
    probe: tuple[str, ...],
    *,
    escapes: frozenset[str] = frozenset(ALL_VERSIONS),
    pip: str = "",
    npm: str = "",
    apt: tuple[str, ...] = (),
) -> list[Client]:
    """That library over each of those versions."""
    made = []
    for version in versions:
        kinds = _kinds(version, escapes)
        if library == "stompest" and version == "1.0":
            kinds -= {"utf8"}  # it holds 1.0 to ASCII
        # stompit decodes each chunk of a header line by itself: a character that lies in two of them is lost.
        misreads = frozenset({"utf8"} if library == "stompit" else ())
        made.append(Client(library, version, command, probe, kinds, misreads, pip, npm, apt))
    return made


def _python(
    versions: tuple[str, ...], library: str, script: str, module: str, requirement: str, exact: str = ""
) -> list[Client]:
    check = f"import {module} as m" + (f"; assert m.__version__ == '{exact}'" if exact else "")
    command = (sys.executable, str(SCRIPTS / script))
    return _over(versions, library, command, (sys.executable, "-c", check), pip=requirement)


NONE: Final[frozenset[str]] = frozenset()
CLIENTS: Final = (
    *_python(ALL_VERSIONS, "stomp.py-9.0.0", "stomp_py.py", "stomp", "stomp.py==9.0.0", "9.0.0"),
    *_python(ALL_VERSIONS, "stomp.py-8.2.0", "stomp_py.py", "stomp", "stomp.py==8.2.0", "8.2.0"),
    *_python(ALL_VERSIONS, "stompest", "stompest_client.py", "stompest.sync", "stompest==2.3.0"),
    *_python(("1.2",), "stompman", "stompman_client.py", "stompman", "stompman==3.16.0"),
    *_over(
        ALL_VERSIONS,
        "ruby-stomp",
        ("ruby", str(SCRIPTS / "ruby_stomp.rb")),
        ("ruby", "-e", "require 'stomp'"),
        apt=("ruby", "ruby-stomp"),
    ),
    *_over(
        ("1.0", "1.2"),
        "perl-net-stomp",
        ("perl", str(SCRIPTS / "net_stomp.pl")),
        ("perl", "-MNet::Stomp", "-e", "1"),
        escapes=NONE,
        apt=("perl", "libnet-stomp-perl"),
    ),
    *_over(
        ALL_VERSIONS,
        "php-stomp",
        ("php", str(SCRIPTS / "pecl_stomp.php")),
        ("php", "-r", "exit(extension_loaded('stomp') ? 0 : 1);"),
        escapes=NONE,
        apt=("php-cli", "php-stomp"),
    ),
    *_over(
        ALL_VERSIONS,
        "stompit",
        ("node", str(SCRIPTS / "stompit_client.js")),
        ("node", "-e", "require('stompit')"),
        npm="stompit@1.0.0",
    ),
    *_over(
        ALL_VERSIONS,
        "stompjs",
        ("node", str(SCRIPTS / "stompjs_client.js")),
        ("node", "-e", "require('@stomp/stompjs')"),
        escapes=frozenset({"1.2"}),
        npm="@stomp/stompjs@7.5.0",
    ),
)
