"""Flags beat variables beat the file beats defaults; what is wrong is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.config import Address, Key, Kind, Settings, keys, load, show, toml
from broker.config.settings import NEIGHBOURS
from broker.errors import ConfigError

KEYS = list(keys())
BY_NAME = {key.name: key for key in KEYS}


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "stompd.toml"
    path.write_text(text)
    return str(path)


def refusal(path: str | None = None, variables: dict[str, str] | None = None, **flags: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, variables or {}, flags)
    assert caught.value.exit_code == 78
    return str(caught.value)


def other(key: Key) -> tuple[str, object]:
    """A written value that is allowed and not the default, and what it becomes."""
    match key.kind:
        case Kind.TEXT:
            return '"/tmp/elsewhere"', "/tmp/elsewhere"
        case Kind.FLAG:
            return "true", True
        case Kind.CHOICE:
            return f'"{key.choices[-1]}"', key.choices[-1]
        case Kind.ADDRESSES:
            return '["127.0.0.1:7", "[::1]:8"]', (Address("127.0.0.1", 7), Address("::1", 8))
        case _:
            value = type(key.default)(key.low or 1)
            return toml(key.kind, value), value


def assign(key: Key, written: str) -> str:
    section, _, name = key.name.rpartition(".")
    return f"[{section}]\n{name} = {written}\n" if section else f"{name} = {written}\n"


def test_nothing_given_is_the_defaults() -> None:
    assert load(None, {}, {}) == Settings()
    assert dict(load(None, {}, {}).origins) == {}


def test_the_defaults_listen_on_loopback_only() -> None:
    settings = Settings()
    assert [str(a) for a in settings.stomp.listen] == ["127.0.0.1:61613", "[::1]:61613"]
    assert [str(a) for a in settings.http.listen] == ["127.0.0.1:15674", "[::1]:15674"]
    assert all(address.is_loopback for address in (*settings.stomp.listen, *settings.http.listen))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_each_key_is_read_from_the_file_with_its_origin(key: Key, tmp_path: Path) -> None:
    written, value = other(key)
    path = write(tmp_path, assign(key, written))
    settings = load(path, {}, {})
    assert settings.get(key.name) == value
    assert type(settings.get(key.name)) is type(key.default)
    assert settings.origins[key.name] == f"file {path}"


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_each_key_is_read_from_its_variable_and_beats_the_file(key: Key, tmp_path: Path) -> None:
    written, value = other(key)
    path = write(tmp_path, assign(key, toml(key.kind, key.default)))
    text = written.replace('"', "").strip("[]") if key.kind is not Kind.ADDRESSES else "127.0.0.1:7,[::1]:8"
    settings = load(path, {key.variable: text}, {})
    assert settings.get(key.name) == value
    assert settings.origins[key.name] == f"variable {key.variable}"


def test_flags_beat_variables_beat_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'data_dir = "a"\n[stomp]\nlisten = ["127.0.0.1:1"]\n')
    variables = {"STOMPD_DATA_DIR": "b", "STOMPD_STOMP__LISTEN": "127.0.0.1:2"}
    assert load(path, {}, {}).data_dir == "a"
    assert load(path, variables, {}).data_dir == "b"
    settings = load(path, variables, {"data_dir": "c", "stomp.listen": ["127.0.0.1:3"], "http.listen": None})
    assert (settings.data_dir, settings.stomp.listen) == ("c", (Address("127.0.0.1", 3),))
    assert settings.origins["data_dir"] == "flag"
    assert "http.listen" not in settings.origins


@pytest.mark.parametrize("key", [key for key in KEYS if key.high], ids=lambda key: key.name)
def test_each_bound_is_allowed_and_one_step_beyond_is_refused(key: Key, tmp_path: Path) -> None:
    step = 0.001 if key.kind is Kind.SECONDS else 1
    room = "[memory]\nlimit = '1024GiB'\n" if key.name != "memory.limit" else ""
    for value in (key.low, key.high):
        text = assign(key, toml(key.kind, value))
        try:
            load(write(tmp_path, room + text), {}, {})
        except ConfigError as error:
            assert "may be at most" in str(error)  # a neighbour's word, not the bound's
    for value in (key.low - step, key.high + step):
        if value < 0:
            continue
        text = refusal(write(tmp_path, room + assign(key, toml(key.kind, value))))
        assert f"{key.name} = " in text and f"from {show(key.kind, key.low)} to" in text


WRONG = {
    'limits.body = "4 megs"': ["limits.body", '"4 megs"', "a size such as", "1KiB to 64MiB"],
    "limits.body = -1": ["limits.body = -1"],
    "limits.body = true": ["limits.body = true"],
    "limits.body = 1.5": ["limits.body = 1.5"],
    'limits.headers = "64"': ["limits.headers", "a whole number, from 8 to 1000"],
    "limits.headers = 7": ["limits.headers = 7"],
    "limits.hold = 30": ["limits.hold = 30", 'write "30s" or "30ms"'],
    'limits.hold = "30"': ["limits.hold", "a time such as"],
    'limits.hold = "1_0s"': ["limits.hold"],
    'limits.hold = "\u0661s"': ["limits.hold"],
    'storage.fsync = "sometimes"': ['"always" or "interval" or "never"'],
    "access.anonymous = 1": ["access.anonymous = 1", "true or false"],
    'stomp.listen = "127.0.0.1:1"': ["a list of addresses"],
    "stomp.listen = []": ["at least one"],
    'stomp.listen = ["127.0.0.1"]': ["expected HOST:PORT"],
    'stomp.listen = ["::1:61613"]': ["goes in brackets"],
    'stomp.listen = ["*:61613"]': ["0.0.0.0:PORT"],
    'stomp.listen = ["127.0.0.1:70000"]': ["0 to 65535"],
    'stomp.listen = ["127.0.0.1:1", "127.0.0.1:1"]': ["is there twice"],
    "stomp.listen = [61613]": ["a list of addresses"],
    "data_dir = 3": ["data_dir = 3"],
    'data_dir = ""': ["not empty"],
    "limits = 3": ["limits is a section", "[limits]"],
}


@pytest.mark.parametrize("line", WRONG)
def test_a_bad_value_is_refused_with_key_value_and_what_is_allowed(line: str, tmp_path: Path) -> None:
    path = write(tmp_path, line + "\n")
    text = refusal(path)
    assert text.startswith(f"{path}: {line.split(' ')[0]}")
    for part in WRONG[line]:
        assert part in text, text


NEAREST = {
    "limits.bdy = 1": "did you mean limits.body?",
    "limits.header_lines = 1": "did you mean limits.header_line?",
    "storage.sync = 1": "did you mean storage.fsync?",
    "datadir = 1": "did you mean data_dir?",
    "[stopm]\nlisten = []": "did you mean stomp?",
    "[storage]\nbody = 1": "did you mean limits.body?",
}


@pytest.mark.parametrize("lines", NEAREST)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(lines: str, tmp_path: Path) -> None:
    assert NEAREST[lines] in refusal(write(tmp_path, lines + "\n"))


@pytest.mark.parametrize(
    "name", ["stomp.tls.listen", "access.users", "queues.orders.ttl", "http.allowed_hosts"]
)
def test_keys_that_do_not_exist_yet_are_unknown(name: str, tmp_path: Path) -> None:
    assert "there is no such" in refusal(write(tmp_path, f"{name} = 1\n"))


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, 'nonsense = 1\n[limits]\nbdy = 1\nheaders = "x"\n')
    text = refusal(path, {"STOMPD_LIMITS__BODY": "huge", "STOMPD_LIMITS__HEDERS": "1"}, data_dir="")
    for part in (
        "nonsense",
        "limits.bdy",
        "limits.headers",
        "STOMPD_LIMITS__BODY",
        "STOMPD_LIMITS__HEDERS",
        "data_dir",
    ):
        assert part in text, part
    assert len(text.split("\n")) == 6


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, 'data_dir = "a"\n\nlimits = = 3\n')
    assert refusal(path).startswith(f"{path}:3:")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(str(tmp_path / "absent.toml"))
    (tmp_path / "latin.toml").write_bytes(b'data_dir = "\xe9"\n')
    assert "not UTF-8" in refusal(str(tmp_path / "latin.toml"))


def test_a_long_value_is_not_repeated_in_full(tmp_path: Path) -> None:
    assert len(refusal(write(tmp_path, f'limits.body = "{"x" * 5000}"\n'))) < 400


def test_variables_of_the_client_and_of_kubernetes_are_left_alone() -> None:
    load(
        None,
        {
            "STOMPD_URL": "stomp://x",
            "STOMPD_SERVICE_HOST": "10.0.0.1",
            "STOMPD_PORT": "tcp://10.0.0.1:61613",
            "STOMPD_PORT_61613_TCP_ADDR": "10.0.0.1",
            "STOMPD_SERVICE_PORT_STOMP": "61613",
            "HOME": "/root",
        },
        {},
    )


@pytest.mark.parametrize("small, large, share", NEIGHBOURS)
def test_a_default_is_lowered_to_its_neighbour_and_a_written_value_refused(
    small: str, large: str, share: int, tmp_path: Path
) -> None:
    key, neighbour = BY_NAME[small], BY_NAME[large]
    low = int(max(neighbour.low, key.low * share))
    variables = {neighbour.variable: show(neighbour.kind, low)}
    settings = load(None, variables, {})
    assert settings.get(small) == min(key.default, low // share)
    if settings.get(small) != key.default:
        assert settings.origins[small] == f"default, lowered to fit {large}"
    text = refusal(None, {**variables, key.variable: show(key.kind, low // share + 1)})
    assert f"{small} = " in text and large in text


OFF_LOOPBACK = [
    "0.0.0.0:61613",
    "[::]:61613",
    "192.0.2.1:61613",
    "broker.example:61613",
    "[::ffff:192.0.2.1]:1",
]


@pytest.mark.parametrize("section", ["stomp", "http"])
@pytest.mark.parametrize("address", OFF_LOOPBACK)
@pytest.mark.parametrize("written", ["", "anonymous = true\n", "i_accept_plaintext = true\n"])
def test_a_listener_off_loopback_is_refused_without_both_lines(
    section: str, address: str, written: str, tmp_path: Path
) -> None:
    text = refusal(write(tmp_path, f'[{section}]\nlisten = ["{address}"]\n[access]\n{written}'))
    assert f"{section}.listen" in text and "[access]" in text
    for line in ("anonymous = true\n", "i_accept_plaintext = true\n"):
        assert (line.strip() in text) == (line not in written)


@pytest.mark.parametrize("address", OFF_LOOPBACK)
def test_a_listener_off_loopback_starts_with_both_lines(address: str, tmp_path: Path) -> None:
    both = "[access]\nanonymous = true\ni_accept_plaintext = true\n"
    load(write(tmp_path, f'[stomp]\nlisten = ["{address}"]\n{both}'), {}, {})


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "[::ffff:127.0.0.1]:1"]
)
def test_loopback_needs_no_lines(address: str) -> None:
    assert str(load(None, {}, {"stomp.listen": [address]}).stomp.listen[0]) == address


def test_one_address_cannot_serve_two_protocols() -> None:
    assert "both have" in refusal(
        None, None, **{"stomp.listen": ["127.0.0.1:1"], "http.listen": ["127.0.0.1:1"]}
    )
    load(None, {}, {"stomp.listen": ["127.0.0.1:0"], "http.listen": ["127.0.0.1:0"]})


def test_a_listener_that_is_not_wanted_is_an_empty_list(tmp_path: Path) -> None:
    assert load(write(tmp_path, "http.listen = []\n"), {}, {}).http.listen == ()
