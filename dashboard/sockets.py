"""How the report's server sends: each part of an answer at once."""

from __future__ import annotations

import os
import socket
import stat

DESCRIPTORS = "/dev/fd"  # of this process, by number; not on Windows


def send_at_once() -> None:
    """Let no answer wait until the browser has acknowledged the first part of it, which takes 40 ms.

    asyncio sees to that for sockets that were made with TCP's number; Streamlit listens on one that was made without.
    What a socket is told that listens, the connections that it takes inherit.
    """
    for name in os.listdir(DESCRIPTORS) if os.path.isdir(DESCRIPTORS) else []:
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as ours:
                inet = ours.family in (socket.AF_INET, socket.AF_INET6) and ours.type == socket.SOCK_STREAM
                if inet and ours.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:  # what listed them is closed by now
            continue
