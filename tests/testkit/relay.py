"""Passes frames between two network devices, each after a delay. Run in the namespace that holds both::

python -m testkit.relay DEVICE DEVICE SECONDS
python -m testkit.relay --no-offload DEVICE
"""

import array
import collections
import fcntl
import select
import socket
import struct
import sys
import time

ETH_P_ALL = 3
PACKET_OUTGOING = 4
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC = 263, 1, 1
PACKET_IGNORE_OUTGOING = 23
SIOCETHTOOL = 0x8946
# Transmit checksums, scatter-gather, TCP segmentation, generic segmentation and receive offload, from linux/ethtool.h.
SET_OFF = (0x17, 0x19, 0x1F, 0x24, 0x2C)
FRAME = 65600
QUEUE_LIMIT = 200_000


def no_offload(device: str) -> None:
    """What ``ethtool -K DEVICE tx off sg off tso off gso off gro off`` does, without needing ethtool."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in SET_OFF:
            value = array.array("B", struct.pack("II", command, 0))
            request = struct.pack("16sP", device.encode(), value.buffer_info()[0])
            fcntl.ioctl(control, SIOCETHTOOL, request)


def attach(device: str) -> socket.socket:
    """A socket that sees every frame arriving on a device, and sends there."""
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    port.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 20)
    port.bind((device, 0))
    membership = struct.pack("IHH8s", socket.if_nametoindex(device), PACKET_MR_PROMISC, 0, b"")
    port.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership)
    port.setblocking(False)
    return port


def relay(first: str, second: str, delay: float) -> None:
    """Never returns; frames of one direction keep their order."""
    ports = (attach(first), attach(second))
    queues: tuple[collections.deque[tuple[float, bytes]], ...] = (collections.deque(), collections.deque())
    poller = select.poll()
    for port in ports:
        poller.register(port, select.POLLIN)
    print("ready", flush=True)
    while True:
        due = min((queue[0][0] for queue in queues if queue), default=None)
        now = time.monotonic()
        # poll counts whole milliseconds; the last one is waited out by asking again at once.
        poller.poll(None if due is None else max(0, int((due - now) * 1000)))
        now = time.monotonic()
        for port, queue in zip(ports, queues, strict=True):
            for _ in range(256):
                try:
                    frame = port.recv(FRAME)
                except BlockingIOError:
                    break
                if len(queue) < QUEUE_LIMIT:
                    queue.append((now + delay, frame))
        for port, queue in zip(reversed(ports), queues, strict=True):
            while queue and queue[0][0] <= now:
                try:
                    port.send(queue[0][1])
                except OSError:
                    break  # the device's queue is full or the device is down: the next round tries again
                queue.popleft()


if __name__ == "__main__":
    if sys.argv[1] == "--no-offload":
        no_offload(sys.argv[2])
    else:
        relay(sys.argv[1], sys.argv[2], float(sys.argv[3]))
