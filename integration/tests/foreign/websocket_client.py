"""A WebSocket over HTTP/2 (RFC 8441): says a word, and prints status, the fields and what comes back.

Arguments: port, authority, path, word.
"""

import socket
import sys

import h2.config
import h2.connection
import h2.events
import h2.settings

port, authority, path, word = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4].encode()
config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
connection = h2.connection.H2Connection(config=config)
stream = socket.create_connection(("127.0.0.1", port), timeout=10)
connection.initiate_connection()
stream.sendall(connection.data_to_send())

mask = b"\x01\x02\x03\x04"
masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(word))
frame = bytes([0x81, 0x80 | len(word)]) + mask + masked
close = bytes([0x88, 0x82]) + mask + bytes([0x03 ^ mask[0], 0xE8 ^ mask[1]])

opened, got = False, b""
while True:
    data = stream.recv(65536)
    if not data:
        sys.exit("the connection was closed")
    for event in connection.receive_data(data):
        if isinstance(event, h2.events.RemoteSettingsChanged) and not opened:
            offered = event.changed_settings.get(h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL)
            if not offered or offered.new_value != 1:
                sys.exit("extended CONNECT is not offered")
            opened = True
            head = [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":path", path),
                (":authority", authority),
                ("sec-websocket-version", "13"),
                ("origin", "http://" + authority),
            ]
            connection.send_headers(1, head)
        elif isinstance(event, h2.events.ResponseReceived):
            fields = dict(event.headers)
            print(fields[":status"], "sec-websocket-accept" in fields, "upgrade" in fields)
            if fields[":status"] != "200":
                sys.exit(0)
            connection.send_data(1, frame)
        elif isinstance(event, h2.events.DataReceived):
            connection.acknowledge_received_data(event.flow_controlled_length, 1)
            got += event.data
            if got[2:] == word:
                print(got[2:].decode())
                connection.send_data(1, close)
        elif isinstance(event, h2.events.StreamEnded):
            print("ended")
            sys.exit(0)
        elif isinstance(event, h2.events.StreamReset):
            sys.exit(f"reset: {event.error_code}")
    stream.sendall(connection.data_to_send())
