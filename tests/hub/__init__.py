"""A hub of models for tests, on this machine; ``python -m tests.hub`` runs it by itself."""

from .faults import Fault
from .files import File
from .server import Hub
from .store import Commit
from .traffic import Request

__all__ = ["Commit", "Fault", "File", "Hub", "Request"]
