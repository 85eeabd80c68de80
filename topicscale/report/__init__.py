"""The report: one self-contained HTML file about a finished run.

``data`` says what a report holds, ``read`` fills it from a store, ``page`` makes the file. Nothing here starts an engine.
"""

from __future__ import annotations

from topicscale.report.data import Aspect, DocumentMap, Lineage, QuarantinedRow, ReportData, Timing, Topic
from topicscale.report.page import build
from topicscale.report.read import load

__all__ = ["Aspect", "DocumentMap", "Lineage", "QuarantinedRow", "ReportData", "Timing", "Topic", "build", "load"]
