"""A pod that speaks HTTP/2 in clear, and says back what it is told over WebSockets; prints its port.

Argument: `extended` announces extended CONNECT (RFC 8441) and takes WebSockets by it; `http1` takes them over HTTP/1.1 at the
same port, as servers of Go with h2c do; `neither` takes none.
"""

import asyncio
import sys

import h2.config
import h2.connection
import h2.events
import h2.settings
import websockets

kind = sys.argv[1]
PREFACE = b"PRI * HTTP/2.0"


def unmasked(frame):
    mask = frame[2:6]
    return bytes(byte ^ mask[at % 4] for at, byte in enumerate(frame[6 : 6 + (frame[1] & 0x7F)]))


async def speak_h2(reader, writer, data):
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    if kind == "extended":
        announced = {h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 1}
        connection.local_settings = h2.settings.Settings(client=False, initial_values=announced)
    connection.initiate_connection()
    writer.write(connection.data_to_send())
    while data:
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                fields = dict(event.headers)
                if fields.get(":protocol") == "websocket" and "sec-websocket-key" not in fields:
                    said = [(":status", "200" if fields[":path"] == "/chat" else "403"), ("x-origin", fields["origin"])]
                    connection.send_headers(event.stream_id, said, end_stream=fields[":path"] != "/chat")
                else:
                    connection.send_headers(event.stream_id, [(":status", "200")])
                    connection.send_data(event.stream_id, b"plain", end_stream=True)
            elif isinstance(event, h2.events.DataReceived):
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if event.data:
                    opcode, told = event.data[0], unmasked(event.data)
                    connection.send_data(event.stream_id, bytes([opcode, len(told)]) + told, end_stream=opcode == 0x88)
        writer.write(connection.data_to_send())
        data = await reader.read(65536)


async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def main():
    async def echo(socket, *_path):
        async for message in socket:
            await socket.send(message)

    async def accept(reader, writer):
        data = await reader.read(65536)
        if data.startswith(PREFACE):
            await speak_h2(reader, writer, data)
        elif kind == "http1":
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", inner_port)
            inner_writer.write(data)
            await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))
        writer.close()

    async with websockets.serve(echo, "127.0.0.1", 0) as inner:
        inner_port = inner.sockets[0].getsockname()[1]
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


asyncio.run(main())
