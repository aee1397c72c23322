"""Whether a program fills the screen: a game, a film, a presentation.

X11: ``xprop`` asks the window manager (EWMH, _NET_WM_STATE_FULLSCREEN). Windows:
SHQueryUserNotificationState. Wayland and macOS tell no other program; there the load tells.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Final

from starai.node.yielding.base import Reading, Sensor
from starai.node.yielding.sensors.looking import has, output_of
from starai.node.yielding.sensors.windows import full_screen

_WINDOW: Final = re.compile(r"_NET_ACTIVE_WINDOW\(WINDOW\): window id # (0x[0-9a-fA-F]{1,16})")


def parse_active_window(text: str) -> str | None:
    """The active window's number, from ``xprop -root _NET_ACTIVE_WINDOW``."""
    match = _WINDOW.search(text)
    return match[1] if match and int(match[1], 16) else None


def parse_state(text: str) -> bool:
    """Whether ``xprop -id N _NET_WM_STATE`` tells of a full screen."""
    return "_NET_WM_STATE_FULLSCREEN" in text


class X11Screen:
    """Asks ``xprop``."""

    interval_s = 0.5
    blocking = True

    def read(self) -> Reading:
        """See `Sensor.read`."""
        root = output_of("xprop", "-root", "_NET_ACTIVE_WINDOW")
        if not root:
            return Reading()
        window = parse_active_window(root)
        if window is None:
            return Reading(full_screen=False)
        return Reading(full_screen=parse_state(output_of("xprop", "-id", window, "_NET_WM_STATE")))


class WindowsScreen:
    """Asks the shell."""

    interval_s = 0.5
    blocking = False

    def read(self) -> Reading:
        """See `Sensor.read`."""
        return Reading(full_screen=full_screen())


def screen_sensor() -> Sensor | None:
    """The sensor of this platform, if there is a screen to ask for."""
    if sys.platform == "win32":
        return WindowsScreen()
    return X11Screen() if os.environ.get("DISPLAY") and has("xprop") else None
