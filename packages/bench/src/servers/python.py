"""Python's servers, for comparison: ThreadingTCPServer, ForkingTCPServer or asyncio; ThreadingUDPServer or UDPServer. Prints its port."""
import asyncio
import hashlib
import os
import socket
import socketserver
import sys

strategy, service = sys.argv[1], sys.argv[2]


class Handler(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self):
        try:
            if service == "compute":
                for line in self.rfile:
                    rounds = int(os.environ["BENCH_ROUNDS"])
                    derived = hashlib.pbkdf2_hmac("sha256", line[:-1], b"bench", rounds, 32)
                    self.wfile.write(derived.hex()[:63].encode() + b"\n")
            elif service == "lines":
                for line in self.rfile:
                    self.wfile.write(line)
            else:
                while data := self.request.recv(65536):
                    self.request.sendall(data)
        except ConnectionError:
            pass


class Threading(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 511


class Forking(socketserver.ForkingTCPServer):
    request_queue_size = 511


async def answer(reader, writer):
    try:
        while data := await (reader.readline() if service == "lines" else reader.read(65536)):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def run_asyncio():
    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=511)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Packet(socketserver.BaseRequestHandler):
    def handle(self):
        data, sock = self.request
        sock.sendto(data, self.client_address)


if service == "datagrams":
    kind = socketserver.ThreadingUDPServer if strategy == "threadingUDP" else socketserver.UDPServer
    with kind(("127.0.0.1", 0), Packet) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
elif strategy in ("threading", "forking"):
    with (Threading if strategy == "threading" else Forking)(("127.0.0.1", 0), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
else:
    asyncio.run(run_asyncio())
