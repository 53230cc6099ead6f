"""A WebSocket server that says back what it is told; prints its port."""

import asyncio

import websockets


async def echo(socket, *_path):
    async for message in socket:
        await socket.send(message)


async def main():
    async with websockets.serve(echo, "127.0.0.1", 0) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()


asyncio.run(main())
