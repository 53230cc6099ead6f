"""Somebody else's eBPF program, attached until standard input ends. To each line it answers how often it has run.

    program.py cgroup FOLDER connect4|connect6|sock_ops|received|sent link|multi|override|alone [FROM TO]
    program.py tcx DEVICE first|last next|pass|drop ADDRESS
    program.py pin PATH next|pass|drop ADDRESS

On a cgroup it allows everything, and of what connects to one address makes another. On a device it looks at what is sent to one
address of IPv4; `tc` attaches one that is pinned.
"""

import ctypes
import ipaddress
import os
import platform
import socket
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
SYSCALL = {"x86_64": 321, "aarch64": 280}[platform.machine()]
MAP_CREATE, MAP_LOOKUP, PROG_LOAD, OBJ_PIN, PROG_ATTACH, PROG_DETACH, LINK_CREATE = 0, 1, 5, 6, 8, 9, 28
ARRAY_MAP, CLASSIFIER, TCX_INGRESS = 2, 3, 46
# BPF_PROG_TYPE_… and enum bpf_attach_type.
HOOKS = {"connect4": (18, 10), "connect6": (18, 11), "sock_ops": (13, 3), "received": (8, 0), "sent": (8, 1)}
# BPF_F_ALLOW_MULTI, BPF_F_ALLOW_OVERRIDE, and neither.
LEGACY = {"multi": 2, "override": 1, "alone": 0}
# BPF_F_BEFORE and BPF_F_AFTER, of all.
ORDER = {"first": 8, "last": 16}
# TCX_NEXT and TC_ACT_UNSPEC, TC_ACT_OK, TC_ACT_SHOT.
VERDICTS = {"next": -1, "pass": 0, "drop": 2}


def bpf(command, form, *values):
    attributes = struct.pack("=" + form, *values)
    result = LIBC.syscall(SYSCALL, command, attributes, len(attributes))
    if result < 0:
        sys.exit(f"bpf({command}): {os.strerror(ctypes.get_errno())}")
    return result


def insn(code, dst=0, src=0, offset=0, immediate=0):
    return struct.pack("<BBhI", code, dst | src << 4, offset, immediate & 0xFFFF_FFFF)


def counting(runs):
    """Adds one to the map's only value."""
    return [
        insn(0x62, 10, 0, -4, 0),
        insn(0xBF, 2, 10),
        insn(0x07, 2, 0, 0, -4),
        insn(0x18, 1, 1, 0, runs),  # BPF_PSEUDO_MAP_FD
        insn(0),
        insn(0x85, 0, 0, 0, 1),  # bpf_map_lookup_elem
        insn(0x15, 0, 0, 2, 0),
        insn(0xB7, 1, 0, 0, 1),
        insn(0xDB, 0, 1, 0, 0),  # atomic add
    ]


def words(address):
    """Where struct bpf_sock_addr has the parts of an address, and what they are."""
    host, port = address.rsplit(":", 1)
    packed = ipaddress.ip_address(host.strip("[]")).packed
    first = 4 if len(packed) == 4 else 8
    parts = [(first + at, int.from_bytes(packed[at : at + 4], sys.byteorder)) for at in range(0, len(packed), 4)]
    return parts + [(24, socket.htons(int(port)))]


def translating(before, after):
    changes = [step for at, word in words(after) for step in (insn(0xB4, 2, 0, 0, word), insn(0x63, 6, 2, at))]
    checks = []
    for number, (at, word) in enumerate(reversed(words(before))):
        checks = [insn(0x61, 2, 6, at), insn(0x56, 2, 0, 2 * number + len(changes), word)] + checks
    return checks + changes


def to_address(address):
    """Passes on what is sent to another, by where an Ethernet frame has it."""
    other = insn(0xB7, 0, 0, 0, VERDICTS["next"]) + insn(0x95)
    address = int(ipaddress.IPv4Address(address))
    return [insn(0x20, 0, 0, 0, 30), insn(0x16, 0, 0, 2, address), other]


def load(kind, hook, before, after, verdict):
    keep_context = insn(0xBF, 6, 1)
    code = b"".join([keep_context, *before, *counting(RUNS), *after, insn(0xB7, 0, 0, 0, verdict), insn(0x95)])
    code, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    at = ctypes.addressof
    count = len(code) // 8
    return bpf(PROG_LOAD, "IIQQIIQII16sII", kind, count, at(code), at(licence), 0, 0, 0, 0, 0, b"theirs", 0, hook)


def on_cgroup(folder, hook, how, *translation):
    kind, hook = HOOKS[hook]
    cgroup = os.open(folder, os.O_RDONLY)
    program = load(kind, hook, [], translating(*translation) if translation else [], 1)
    if how == "link":
        link = bpf(LINK_CREATE, "IIII", program, cgroup, hook, 0)
        return lambda: os.close(link)
    bpf(PROG_ATTACH, "IIII", cgroup, program, hook, LEGACY[how])
    return lambda: bpf(PROG_DETACH, "IIII", cgroup, program, hook, 0)


def on_device(device, order, verdict, address):
    program = load(CLASSIFIER, 0, to_address(address), [], VERDICTS[verdict])
    link = bpf(LINK_CREATE, "IIIIQQ", program, socket.if_nametoindex(device), TCX_INGRESS, ORDER[order], 0, 0)
    return lambda: os.close(link)


def pinned(path, verdict, address):
    program = load(CLASSIFIER, 0, to_address(address), [], VERDICTS[verdict])
    name = ctypes.create_string_buffer(path.encode())
    bpf(OBJ_PIN, "QII", ctypes.addressof(name), program, 0)
    return lambda: os.unlink(path)


def runs():
    key, value = ctypes.c_uint32(0), ctypes.c_uint64()
    bpf(MAP_LOOKUP, "IIQQQ", RUNS, 0, ctypes.addressof(key), ctypes.addressof(value), 0)
    return value.value


RUNS = bpf(MAP_CREATE, "IIIII", ARRAY_MAP, 4, 8, 1, 0)
detach = {"cgroup": on_cgroup, "tcx": on_device, "pin": pinned}[sys.argv[1]](*sys.argv[2:])
print("attached", flush=True)
for _ in sys.stdin:
    print(runs(), flush=True)
detach()
