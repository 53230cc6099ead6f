"""A WebSocket over HTTP/1.1: says a word, and prints the status or what comes back.

Arguments: port, authority, path, word.
"""

import asyncio
import sys

import websockets

port, authority, path, word = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]


async def main():
    url, origin = f"ws://{authority}{path}", "http://" + authority
    try:
        async with websockets.connect(url, host="127.0.0.1", port=port, origin=origin) as client:
            await client.send(word)
            print(await client.recv())
    except websockets.exceptions.InvalidHandshake as error:
        print(error)


asyncio.run(main())
