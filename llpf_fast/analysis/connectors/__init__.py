"""Connectors of many optima: low-loss simplicial complexes that join them all, found and certified."""

from .cells import Subdivision
from .certificate import ComplexCertificate, certify_complex
from .complex import Complex, ComplexKind
from .connector import Connector, ConnectorSettings, find_connector
from .hyperplane import Hyperplane
from .judge import certify_connector

__all__ = [
    "Complex",
    "ComplexCertificate",
    "ComplexKind",
    "Connector",
    "ConnectorSettings",
    "Hyperplane",
    "Subdivision",
    "certify_complex",
    "certify_connector",
    "find_connector",
]
