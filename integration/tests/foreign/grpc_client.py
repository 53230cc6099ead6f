"""One call of gRPC that is expected to fail; prints its code, a bar, and its message. Arguments: port, authority, timeout."""

import sys

import grpc

options = [("grpc.default_authority", sys.argv[2]), ("grpc.enable_retries", 0)]
with grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}", options=options) as channel:
    call = channel.unary_unary("/shop.Cart/Get", lambda text: text, lambda text: text)
    try:
        print("answered", call(b"x", timeout=float(sys.argv[3])))
    except grpc.RpcError as error:
        print(f"{error.code().name}|{error.details()}")
