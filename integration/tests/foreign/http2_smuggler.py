"""Requests over HTTP/2 that would be two, or another, over HTTP/1.1; prints for each how it was answered.

Arguments: port, authority.
"""

import socket
import sys

import h2.config
import h2.connection
import h2.events

port, host = int(sys.argv[1]), sys.argv[2]
hidden = "\r\n\r\nGET /hidden HTTP/1.1\r\nHost: " + host


def head(method="POST", path="/", authority=host, scheme="http", more=()):
    return [(":method", method), (":scheme", scheme), (":path", path), (":authority", authority), *more]


CASES = {
    "transfer-encoding": (head(more=[("transfer-encoding", "chunked")]), b"0\r\n\r\n"),
    "connection": (head(more=[("connection", "x")]), b""),
    "upgrade": (head(more=[("upgrade", "x")]), b""),
    "a line end in a value": (head(more=[("x", "a" + hidden)]), b""),
    "a line feed in a value": (head(more=[("x", "a\nb: c")]), b""),
    "NUL in a value": (head(more=[("x", "a\0b")]), b""),
    "a line end in a name": (head(more=[("x: a" + hidden + "\r\ny", "b")]), b""),
    "a colon in a name": (head(more=[("x:y", "b")]), b""),
    "a space in a name": (head(more=[("x y", "b")]), b""),
    "an upper-case name": (head(more=[("X-Upper", "b")]), b""),
    "an empty name": (head(more=[("", "b")]), b""),
    "a line end in the method": (head(method="GET / HTTP/1.1" + hidden + "\r\nx:"), b""),
    "a space in the method": (head(method="GET /hidden"), b""),
    "a line end in the path": (head(path="/ HTTP/1.1" + hidden), b""),
    "a space in the path": (head(path="/a HTTP/1.1"), b""),
    "an empty path": (head(path=""), b""),
    "a path without a slash": (head(path="hidden"), b""),
    "a line end in the authority": (head(authority=host + hidden), b""),
    "a path in the authority": (head(authority=host + "/x"), b""),
    "a user in the authority": (head(authority="user@" + host), b""),
    "a line end in the scheme": (head(scheme="http" + hidden), b""),
    "two paths": (head(more=[(":path", "/hidden")]), b""),
    "a pseudo field behind a field": ([*head(), ("x", "y"), (":path", "/hidden")], b""),
    "an unknown pseudo field": (head(more=[(":hidden", "1")]), b""),
    "no path": ([(":method", "GET"), (":scheme", "http"), (":authority", host)], b""),
    "no method": ([(":path", "/"), (":scheme", "http"), (":authority", host)], b""),
    "more than the length": (head(more=[("content-length", "1")]), b"hello"),
    "less than the length": (head(more=[("content-length", "50")]), b"hello"),
    "two lengths": (head(more=[("content-length", "5"), ("content-length", "6")]), b"hello"),
    "a length with a sign": (head(more=[("content-length", "+5")]), b"hello"),
    "two hosts": (head(more=[("host", "a.test"), ("host", "b.test")]), b""),
}


def outcome(fields, body):
    config = h2.config.H2Configuration(
        validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding="utf-8"
    )
    connection = h2.connection.H2Connection(config=config)
    stream = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.initiate_connection()
    connection.send_headers(1, fields)
    connection.send_data(1, body, end_stream=True)
    stream.sendall(connection.data_to_send())
    while True:
        try:
            data = stream.recv(65536)
        except ConnectionError:
            return "closed"
        if not data:
            return "closed"
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                return dict(event.headers)[":status"]
            if isinstance(event, h2.events.StreamReset):
                return "reset"
            if isinstance(event, h2.events.ConnectionTerminated):
                return "closed"
        stream.sendall(connection.data_to_send())


for name, (fields, body) in CASES.items():
    print(f"{name}|{outcome(fields, body)}")
