"""The worlds of the second study: pictures that a model can misread, and the truth about every token of its answers."""

from study.worlds.common import World
from study.worlds.eyes import Eyes
from study.worlds.rooms import Rooms

WORLDS: dict[str, World] = {world.name: world for world in (Eyes(), Rooms())}
