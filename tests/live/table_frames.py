"""Cases about frames: their ends, escapes, headers, bodies and lengths."""

from __future__ import annotations

from tests.live.scene import ANY, NONE, Case, c, case, error, put, receipt, s, tcp, up

SUB = "SUBSCRIBE\nid:1\ndestination:<q>\nreceipt:sub\n\n\0"
VERSIONS = ("1.0", "1.1", "1.2")


def ids(version: str, *names: str) -> str:
    """The ids of musts.py for a version: ids("1.1", "null") is "1-null"."""
    return " ".join(f"{version[2]}-{name}" for name in names)


CASES: list[Case] = []

for v in VERSIONS:
    CASES += [
        case(
            f"{v}: a frame ends with NUL and nothing is done before it",
            f"{v} Frames",
            up(v),
            c(SUB),
            receipt("sub"),
            c("SEND\ndestination:<q>\n\nhalf"),
            put("whole"),
            s("MESSAGE", body="whole"),
            c(" and half\0"),
            s("MESSAGE", body="half and half"),
            musts=ids(v, "null"),
        ),
        case(
            f"{v}: EOLs between frames are skipped",
            f"{v} Frames",
            up(v),
            c("\n\n\n" + SUB + "\n\n\n\n"),
            receipt("sub"),
            c("\nSEND\ndestination:<q>\n\nx\0\n\n\nSEND\ndestination:<q>\n\ny\0\n"),
            s("MESSAGE", body="x"),
            s("MESSAGE", body="y"),
        ),
        case(
            f"{v}: several frames in one segment, one frame in many",
            f"{v} Frames",
            up(v),
            c(SUB + "SEND\ndestination:<q>\n\na\0SEND\ndestination:<q>\n\nb\0"),
            receipt("sub"),
            s("MESSAGE", body="a"),
            s("MESSAGE", body="b"),
            *(c(bytes([byte])) for byte in b"BEGIN\ntransaction:t\nreceipt:drip\n\n\0"),
            receipt("drip"),
        ),
        case(
            f"{v}: with content-length the body may hold NULs and EOLs",
            f"{v} content-length",
            up(v),
            c(SUB),
            receipt("sub"),
            c("SEND\ndestination:<q>\ncontent-length:7\n\na\0b\n\n\0\0\0"),
            s("MESSAGE", {"content-length": "7"}, b"a\0b\n\n\0\0"),
            musts=ids(v, "length"),
        ),
        case(
            f"{v}: content-length without a NUL behind the body is refused",
            f"{v} content-length",
            up(v),
            c("SEND\ndestination:<q>\ncontent-length:3\n\nabcd\0"),
            error(),
            musts=ids(v, "length") if v == "1.0" else ids(v, "length-null"),
        ),
        case(
            f"{v}: without content-length the body ends at the first NUL",
            f"{v} content-length",
            up(v),
            c(SUB),
            receipt("sub"),
            c("SEND\ndestination:<q>\n\none\0SEND\ndestination:<q>\n\ntwo\0"),
            s("MESSAGE", {"content-length": "3"}, b"one"),
            s("MESSAGE", {"content-length": "3"}, b"two"),
            musts=ids(v, "null"),
        ),
        case(
            f"{v}: an empty body is a message",
            f"{v} SEND",
            up(v),
            c(SUB),
            receipt("sub"),
            c("SEND\ndestination:<q>\n\n\0"),
            s("MESSAGE", {"destination": "<q>"}, b""),
        ),
        case(
            f"{v}: UTF-8 in headers and bodies arrives as it was sent",
            f"{v} content-type",
            up(v),
            c(SUB),
            receipt("sub"),
            c("SEND\ndestination:<q>\nname:Grüße-日本-🐢\ncontent-type:text/plain\n\nÄÖÜ €\0"),
            s("MESSAGE", {"name": "Grüße-日本-🐢", "content-type": "text/plain"}, "ÄÖÜ €"),
            musts="" if v == "1.0" else ids(v, "utf8") + (" 2-mime" if v == "1.2" else ""),
        ),
        case(
            f"{v}: the first of repeated headers counts",
            f"{v} Repeated Header Entries",
            up(v),
            c(SUB),
            receipt("sub"),
            c("SEND\ndestination:<q>\nfoo:World\nfoo:Hello\n\n\0"),
            s("MESSAGE", {"foo": "World"}),
            musts="2-repeated" if v == "1.2" else "",
        ),
        case(
            f"{v}: header names are case sensitive",
            f"{v} Frames",
            up(v),
            c("SEND\nDestination:<q>\n\n\0"),
            error(),
            musts="2-case" if v == "1.2" else "",
        ),
        case(
            f"{v}: commands are case sensitive",
            f"{v} Frames",
            up(v),
            c("send\ndestination:<q>\n\n\0"),
            error(),
            musts="2-case" if v == "1.2" else "",
        ),
        case(
            f"{v}: a header line without a colon is refused",
            f"{v} Augmented BNF",
            up(v),
            c("SEND\ndestination:<q>\nnocolon\n\n\0"),
            error(),
        ),
        case(
            f"{v}: an empty header name is refused",
            f"{v} Augmented BNF",
            up(v),
            c("SEND\ndestination:<q>\n:value\n\n\0"),
            error(),
        ),
        case(
            f"{v}: an empty header value is a value",
            f"{v} Augmented BNF",
            up(v),
            c(SUB),
            receipt("sub"),
            c("SEND\ndestination:<q>\nempty:\n\n\0"),
            s("MESSAGE", {"empty": ""}),
        ),
        case(
            f"{v}: a NUL inside the header block is refused",
            f"{v} Augmented BNF",
            up(v),
            c("SEND\ndestination:<q>\nx:a\0b\n\n\0"),
            error(),
        ),
        case(
            f"{v}: bytes that are no UTF-8 in a header are refused",
            f"{v} Value Encoding",
            up(v),
            c(b"SEND\ndestination:/queue/utf8\nx:\xff\xfe\n\n\0"),
            error(),
        ),
        case(
            f"{v}: a body of a kilobyte and one of 200 kilobytes arrive whole",
            f"{v} SEND",
            up(v),
            c(SUB),
            receipt("sub"),
            c("SEND\ndestination:<q>\ncontent-length:1024\n\n" + "k" * 1024 + "\0"),
            s("MESSAGE", {"content-length": "1024"}, "k" * 1024),
            c("SEND\ndestination:<q>\ncontent-length:204800\n\n" + "m" * 204800 + "\0"),
            s("MESSAGE", {"content-length": "204800"}, "m" * 204800),
        ),
    ]

CASES += [
    case(
        "1.0: spaces around the colon are trimmed",
        "1.0 Frames",
        up("1.0"),
        c("SUBSCRIBE\nid: 1\ndestination: <q>\nreceipt: sub\n\n\0"),
        receipt("sub"),
        c("SEND\ndestination: <q>\nkey : value\n\nx\0"),
        s("MESSAGE", {"key": "value", "destination": "<q>"}, "x"),
    ),
    case(
        "1.0: a backslash is a backslash",
        "1.0 Frames",
        up("1.0"),
        c(SUB),
        receipt("sub"),
        c("SEND\ndestination:<q>\npath:C:\\temp\\new\n\nx\0"),
        s("MESSAGE", {"path": "C:\\temp\\new"}, "x"),
    ),
    case(
        "1.0: the body of SUBSCRIBE is ignored",
        "1.0 SUBSCRIBE",
        up("1.0"),
        c("SUBSCRIBE\ndestination:<q>\nreceipt:sub\n\nignored\0"),
        receipt("sub"),
        put("x"),
        s("MESSAGE", body="x"),
        musts="0-sub-body",
    ),
    case(
        "1.1: escapes are decoded, and encoded again for the consumer",
        "1.1 Value Encoding",
        up("1.1"),
        c(SUB),
        receipt("sub"),
        c("SEND\ndestination:<q>\nk\\cey:a\\nb\\\\c\\cd\n\nx\0"),
        s("MESSAGE", {"k:ey": "a\nb\\c:d"}),
        musts="1-unescape 1-escape",
    ),
    case(
        "1.2: escapes are decoded, and encoded again for the consumer",
        "1.2 Value Encoding",
        up("1.2"),
        c(SUB),
        receipt("sub"),
        c("SEND\ndestination:<q>\nk\\cey:a\\nb\\\\c\\cd\\re\n\nx\0"),
        s("MESSAGE", {"k:ey": "a\nb\\c:d\re"}),
        musts="2-unescape 2-escape",
    ),
    case(
        "1.2: an escaped backslash before an n is no newline",
        "1.2 Value Encoding",
        up("1.2"),
        c(SUB),
        receipt("sub"),
        c("SEND\ndestination:<q>\npath:C\\c\\\\new\n\nx\0"),
        s("MESSAGE", {"path": "C:\\new"}),
        musts="2-unescape",
    ),
    *(
        case(
            f"{v}: the escape {text!r} is refused", f"{v} Value Encoding", up(v), c(sent), error(), musts=must
        )
        for v, must, text, sent in (
            ("1.1", "1-undefined", "\\t", "SEND\ndestination:<q>\nx:a\\tb\n\n\0"),
            ("1.1", "1-undefined", "\\r", "SEND\ndestination:<q>\nx:a\\rb\n\n\0"),
            ("1.1", "1-undefined", "\\ at the end", "SEND\ndestination:<q>\nx:a\\\n\n\0"),
            ("1.1", "1-undefined", "\\t in a name", "SEND\ndestination:<q>\nx\\t:a\n\n\0"),
            ("1.2", "2-undefined", "\\t", "SEND\ndestination:<q>\nx:a\\tb\n\n\0"),
            ("1.2", "2-undefined", "\\0", "SEND\ndestination:<q>\nx:a\\0b\n\n\0"),
            ("1.2", "2-undefined", "\\N", "SEND\ndestination:<q>\nx:a\\Nb\n\n\0"),
            ("1.2", "2-undefined", "\\ at the end", "SEND\ndestination:<q>\nx:a\\\n\n\0"),
            ("1.2", "2-undefined", "\\t in a name", "SEND\ndestination:<q>\nx\\t:a\n\n\0"),
            ("1.2", "2-undefined", "\\t in a SUBSCRIBE", "SUBSCRIBE\nid:\\t\ndestination:<q>\n\n\0"),
        )
    ),
    *(
        case(
            f"{v}: spaces in names and values are kept",
            f"{v} Value Encoding",
            up(v),
            c(SUB),
            receipt("sub"),
            c("SEND\ndestination:<q>\n pad : both \n\nx\0"),
            s("MESSAGE", {" pad ": " both ", "pad": NONE}),
            musts=ids(v, "notrim"),
        )
        for v in ("1.1", "1.2")
    ),
    *(
        case(
            f"{v}: a body on {what.split()[0]} is refused",
            f"{v} Body",
            up(v),
            c(what + "\n\nbody\0"),
            error(),
            musts=ids(v, "nobody"),
        )
        for v in ("1.1", "1.2")
        for what in ("SUBSCRIBE\nid:1\ndestination:<q>", "BEGIN\ntransaction:t", "DISCONNECT")
    ),
    case(
        "1.2: CR LF ends every line",
        "1.2 Frames",
        tcp(),
        c("CONNECT\r\naccept-version:1.2\r\nhost:x\r\n\r\n\0"),
        s("CONNECTED", {"version": "1.2"}, version="1.2"),
        c("SUBSCRIBE\r\nid:1\r\ndestination:<q>\r\nreceipt:sub\r\n\r\n\0\r\n"),
        receipt("sub"),
        c("\r\n\r\nSEND\r\ndestination:<q>\r\nk:v\r\n\r\nx\r\n\0"),
        s("MESSAGE", {"k": "v", "destination": "<q>"}, b"x\r\n"),
        musts="2-lf",
    ),
    case(
        "1.2: LF and CR LF may be mixed in one frame",
        "1.2 Frames",
        up("1.2"),
        c("SUBSCRIBE\nid:1\r\ndestination:<q>\nreceipt:sub\r\n\n\0"),
        receipt("sub"),
        c("SEND\r\ndestination:<q>\n\r\nx\0"),
        s("MESSAGE", body="x"),
        musts="2-lf",
    ),
    case(
        "1.2: a CR without LF in a header is refused",
        "1.2 Frames",
        up("1.2"),
        c("SEND\ndestination:<q>\nx:a\rb\n\n\0"),
        error(),
        musts="2-lf",
    ),
    case(
        "1.2: a frame whose lines end with CR alone never becomes one",
        "1.2 Frames",
        up("1.2"),
        c("SEND\rdestination:<q>\r\rx\0"),
        error(),
        musts="2-lf",
    ),
    case(
        "1.2: an unknown command is refused",
        "1.2 Once Connected",
        up("1.2"),
        c("JUMP\n\n\0"),
        error(),
    ),
    case(
        "1.2: a command that only begins like one is refused",
        "1.2 Once Connected",
        up("1.2"),
        c("SENDFOO\ndestination:<q>\n\n\0"),
        error(),
    ),
    *(
        case(
            f"1.2: a client may not say {command}",
            "1.2 Augmented BNF",
            up("1.2"),
            c(command + "\n\n\0"),
            error(),
        )
        for command in ("CONNECTED", "MESSAGE", "RECEIPT", "ERROR")
    ),
    case(
        "1.2: content-length counts octets, not characters",
        "1.2 Header content-length",
        up("1.2"),
        c(SUB),
        receipt("sub"),
        c("SEND\ndestination:<q>\ncontent-length:6\n\n日本\0"),
        s("MESSAGE", {"content-length": "6"}, "日本"),
        musts="2-length",
    ),
    case(
        "1.2: an own content-type arrives as it is, and none is made up",
        "1.2 Header content-type",
        up("1.2"),
        c(SUB),
        receipt("sub"),
        c(
            "SEND\ndestination:<q>\ncontent-type:application/xml;charset=utf-16\n\nx\0SEND\ndestination:<q>\n\ny\0"
        ),
        s("MESSAGE", {"content-type": "application/xml;charset=utf-16"}, "x"),
        s("MESSAGE", {"content-type": NONE}, "y"),
        musts="2-mime",
    ),
    case(
        "1.2: what follows a refused frame is never carried out",
        "1.2 ERROR",
        up("1.2"),
        c("SEND\n\nx\0SEND\ndestination:<q>\n\nlost\0"),
        error(),
        up("1.2", who="b"),
        c(SUB, who="b"),
        receipt("sub", who="b"),
        put("first"),
        s("MESSAGE", {"message-id": ANY}, "first", who="b"),
        musts="2-error-close",
    ),
]
